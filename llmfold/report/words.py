"""What a report says in words, the same on the page, on the model card and in the terminal."""

import shlex
from collections.abc import Mapping
from typing import Any

from llmfold.config import AFTERWARDS, FoldConfig
from llmfold.options import command_words, options_of
from llmfold.registry import methods

_NOT_OF_THE_RESULT = ("output", "overwrite", "verify", *AFTERWARDS)


def sentence_case(words: str) -> str:
    """Words with a capital at their head."""
    return words[:1].upper() + words[1:]


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


def check_words(verification: Mapping[str, Any]) -> str:
    """What the reload check compared."""
    if verification.get("mode") == "full":
        worst = ", ".join(f"{dtype} {gap:.1e}" for dtype, gap in verification["relative_logit_difference"].items())
        texts = verification.get("tokenizer_texts")
        alike = f", {texts} hard texts read alike by both tokenizers" if texts else ""
        return f"passed: {verification['tensors']} tensors read back, relative logit difference {worst}{alike}"
    return "shapes only" if verification.get("mode") == "shapes" else "off"


def fold_command(config: Mapping[str, Any], options: type = FoldConfig) -> str:
    """The command line of a fold by the options in its report, but for where it wrote to and how it was checked."""
    of_result = (pair for pair in options_of(options) if pair[0].name not in _NOT_OF_THE_RESULT)
    values = {name: value for name, value in config.items() if (name, value) != ("align", "none")}
    words = ["llmfold", *command_words(of_result, values)]
    return shlex.join([*words, "--recipe", "RECIPE.yaml"] if config.get("layers") else words)
