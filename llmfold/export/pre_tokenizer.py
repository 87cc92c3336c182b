"""How a tokenizer cuts text into words before it merges bytes, by the name that llama.cpp has for it.

llama.cpp holds these rules in its own code and takes their name from the file. As its converter does, a tokenizer is
recognised by the ids that it makes of one text.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from llmfold.errors import CheckpointError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""Names of rules that a regular expression says."""


@cache
def _table() -> dict[str, Any]:
    text = resources.files("llmfold.export").joinpath("pre_tokenizers.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def probe_text() -> str:
    """The text by whose ids tokenizers are told apart."""
    return str(_table()["text"])


def known_names() -> list[str]:
    """Names that the llama.cpp which this release knows reads."""
    return sorted([*_table()["names"], *_table()["others"]])


def recognised(ids: Sequence[int]) -> str | None:
    """The name of the tokenizer that makes ``ids`` of :func:`probe_text`; None where llama.cpp has none for it."""
    digest = hashlib.sha256(str(list(ids)).encode()).hexdigest()
    return next((name for name, digests in _table()["names"].items() if digest in digests), None)


def pre_tokenizer(encodings: Iterable[Sequence[int]], rules: Any) -> str:
    """The name of a tokenizer's rules.

    Args:
        encodings: ids of :func:`probe_text`, as each way to load the tokenizer makes them.
        rules: its ``pre_tokenizer`` in tokenizer.json.

    Raises:
        CheckpointError: llama.cpp does not know it; the sentence says what to pass.
    """
    found = next((name for ids in encodings if (name := recognised(ids)) is not None), None)
    if found is not None:
        return found
    alike = name_of_rules(rules)
    hint = f"its rules are those of --pre {alike}" if alike else f"known are {', '.join(known_names())}"
    raise CheckpointError(
        "llama.cpp does not know the pre-tokenizer of this vocabulary: pass --pre NAME, the name of one that cuts text "
        f"alike; {hint}"
    )


def name_of_rules(rules: Any) -> str | None:
    """The name of rules that are spelled out, such as GPT-2's; None where they are others."""
    steps = rules.get("pretokenizers", [rules]) if isinstance(rules, dict) else []
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if steps[-1].get("use_regex", True):
        digits = len(steps) == 2 and kinds[0] == "Digits" and steps[0].get("individual_digits")
        return "gpt-2" if len(steps) == 1 else "smollm" if digits else None
    if len(steps) == 2 and kinds[0] == "Split" and steps[0].get("behavior") == "Isolated":
        return _SPLITS.get(str(steps[0].get("pattern", {}).get("Regex")))
    return None
