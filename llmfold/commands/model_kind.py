"""What kind of model a command is about, told by its config, and the options of that kind."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from llmfold.commands.parser import Parser

if TYPE_CHECKING:
    from llmfold.errors import UsageError

Text = TypeVar("Text")
Images = TypeVar("Images")
Made = TypeVar("Made")


def by_kind(
    values: Mapping[str, Any], text: Callable[[], Text], images: Callable[[], Images]
) -> "Text | tuple[str, Images]":
    """Options for the kind that a model is of.

    Args:
        values: what was typed: ``model``, and ``revision`` where it has one.
        text: makes options of a language model; asked before the model is, so that usage errors come at once.
        images: makes those of an image model, likewise.

    Returns:
        The options; those of an image model behind the name of its stock class.

    Raises:
        UsageError: whatever ``text`` or ``images`` refuses; a revision of a local folder.
        CheckpointError: a path where no folder is, or a model of the hub that cannot be had.
    """
    from llmfold.errors import UsageError

    one, other = _attempt(text), _attempt(images)
    hopeless = isinstance(other, UsageError) and not _is_folder(values.get("model"))
    if isinstance(one, UsageError) and (hopeless or "model" not in values):
        raise one
    name = image_class_of(values["model"], values.get("revision"))  # a path that is none is told at once
    return _given(one) if name is None else (name, _given(other))


def image_class_of(model: str, revision: str | None) -> str | None:
    """Name of the stock class of an image model, None where the model is none or its config cannot be read.

    Raises:
        UsageError: a revision of a local folder.
        CheckpointError: a path where no folder is, or a model of the hub that cannot be had.
    """
    from llmfold.demo import DEMO_NAME
    from llmfold.errors import CheckpointError
    from llmfold.folder_files import raw_config
    from llmfold.images.kind import image_class
    from llmfold.model_path import local_folder

    if model == DEMO_NAME:
        return None
    folder = local_folder(model, revision)
    if folder is None:
        from llmfold.checkpoint import resolve  # takes torch

        folder = resolve(model, revision=revision, weights=False).folder
    try:
        return image_class(raw_config(folder))
    except CheckpointError:  # whoever opens the model will say it
        return None


def options_for(kind: Callable[..., Made], values: Mapping[str, Any], *, images: bool) -> Made:
    """Options of a class by what was typed.

    Raises:
        UsageError: an option of models of the other kind, one that is missing, or whatever the class refuses.
    """
    from llmfold.errors import UsageError
    from llmfold.options import flag, options_of

    known = {field.name: field for field, _ in options_of(kind)}
    for name in values:
        if name not in known:
            which = "is not for image models, and {} is one" if images else "is for image models, and {} is none"
            raise UsageError(f"{flag(name)} {which.format(values.get('model'))}: leave it out")
    for field, spec in options_of(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise UsageError(f"{flag(field.name)} is missing: {spec.help}")
    return kind(**values)


def add_image_choices(parser: Parser, kind: Any) -> None:
    """Let options take what they take for image models too; which of it a model takes is asked of its config."""
    from llmfold.options import options_of

    choices = {field.name: spec.kind.choices() for field, spec in options_of(kind) if spec.kind.choices}
    for action in parser._actions:
        if action.dest in choices:
            action.choices = tuple(dict.fromkeys((*(action.choices or ()), *choices[action.dest])))


def _attempt(make: "Callable[[], Made]") -> "Made | UsageError":
    """What is made, or why it is not."""
    from llmfold.errors import UsageError

    try:
        return make()
    except UsageError as error:
        return error


def _given(found: "Made | UsageError") -> "Made":
    from llmfold.errors import UsageError

    if isinstance(found, UsageError):
        raise found
    return found


def _is_folder(model: object) -> bool:
    return isinstance(model, str) and os.path.isdir(os.path.expanduser(model))
