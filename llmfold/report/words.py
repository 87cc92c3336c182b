"""What a report says in words, the same on the page, on the model card and in the terminal."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from llmfold.config import AFTERWARDS, FoldConfig
from llmfold.options import flag
from llmfold.registry import methods

_NOT_OF_THE_RESULT = ("output", "overwrite", "verify", "layers", *AFTERWARDS)


def method_words(name: str) -> str:
    """What a method does; of one that is not installed here, its name."""
    known = methods().get(name)
    return known.summary if known else name


def folds(name: str) -> bool:
    """Whether a method folds; one that is not installed here counts as pruning."""
    known = methods().get(name)
    return known is not None and known.folds


def data_words(report: Mapping[str, Any]) -> str:
    """What the fold looked at beside the weights."""
    data = str(report["data"].get("data", "none"))
    if data == "none":
        return "No data: the weights alone."
    return (
        "No outside data: text sampled from the model itself."
        if data.startswith("sampled")
        else f"{data.capitalize()}."
    )


def check_words(found: Mapping[str, Any]) -> str:
    """What the reload check compared."""
    if found.get("mode") == "full":
        worst = ", ".join(f"{dtype} {gap:.1e}" for dtype, gap in found["relative_logit_difference"].items())
        return f"passed: {found['tensors']} tensors read back, relative logit difference {worst}"
    return "shapes only" if found.get("mode") == "shapes" else "off"


def fold_command(config: Mapping[str, Any]) -> str:
    """The command line of a fold by the options in its report, but for where it wrote to and how it was checked."""
    words = ["llmfold"]
    for f in fields(FoldConfig):
        value = config.get(f.name, f.default)
        if f.name in _NOT_OF_THE_RESULT or value in (f.default, None) or (f.name == "align" and value == "none"):
            continue
        if isinstance(value, bool):
            words.append(flag(f.name) if value else flag(f"no_{f.name}"))
        else:
            words += [flag(f.name), str(value)]
    return shlex.join([*words, "--recipe", "RECIPE.yaml"] if config.get("layers") else words)
