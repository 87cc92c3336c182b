"""What the base model's card says that holds of the folded model too: its licence and its languages."""

import re
from pathlib import Path
from typing import Any

import yaml

from llmfold.errors import CheckpointError
from llmfold.folder_files import regular_file
from llmfold.plain_yaml import load

CARD_FILE = "README.md"
_LARGEST_CARD = 1 << 20
_METADATA = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_ONE_OR_MORE = ("license", "language")
_ONE = ("license_name", "license_link")


def carried_over(folder: Path) -> dict[str, str | list[str]]:
    """Licence and languages from the card in a model's ``folder``; a key that is absent or malformed is left out.

    Returns:
        Some of ``license``, ``license_name``, ``license_link`` and ``language``, as the hub spells them.
    """
    metadata = _metadata(folder)
    kept = {key: metadata[key] for key in _ONE if isinstance(metadata.get(key), str)}
    for key in _ONE_OR_MORE:
        value = metadata.get(key)
        words = [_word(item) for item in (value if isinstance(value, list) else [value])]
        if words and all(words):
            kept[key] = words if isinstance(value, list) else words[0]
    return kept


def _metadata(folder: Path) -> dict[str, Any]:
    """The card's metadata, empty where there is no card that can be read: a card is no reason to refuse a model."""
    try:
        path = regular_file(folder, CARD_FILE)
        if path.stat().st_size > _LARGEST_CARD:
            return {}
        found = _METADATA.match(path.read_text(encoding="utf-8-sig"))
        metadata = load(found[1]) if found else None
    except (CheckpointError, OSError, ValueError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _word(value: object) -> str:
    """A text as it is; Norwegian, which YAML takes for false; nothing for all else."""
    return "no" if value is False else value.strip() if isinstance(value, str) else ""
