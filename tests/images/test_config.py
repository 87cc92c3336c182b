"""Options of image models."""

import dataclasses
from typing import get_args

from llmfold.config import FoldConfig
from llmfold.images.config import METHODS, ImageConfig
from llmfold.modules.fold import Method, Repair
from llmfold.options import options_of


def test_methods_and_repairs_are_those_of_modules() -> None:
    assert tuple(METHODS) == get_args(Method)
    kinds = {field.name: spec.kind for field, spec in options_of(ImageConfig)}
    assert kinds["repair"].choices is not None
    assert kinds["repair"].choices() == get_args(Repair)


def test_options_have_the_names_that_those_of_other_models_have() -> None:
    """The command line and recipes read both by one parser."""
    known = {field.name for field in dataclasses.fields(FoldConfig)}
    assert {field.name for field in dataclasses.fields(ImageConfig)} <= known
