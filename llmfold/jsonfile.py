"""Reading JSON objects that somebody else wrote, within bounds that no real model comes near."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError

MAX_JSON_BYTES = 32_000_000
MAX_DEPTH = 64
"""Levels of lists and objects; whatever walks a tree can then do so by recursion."""
_MAX_VALUES = 1_000_000
"""Of lists and objects: an empty list is three bytes of text, and forty times that in memory."""


def read_bounded(path: Path) -> bytes:
    """Return the content of the file ``path``.

    Raises:
        CheckpointError: the file cannot be read, or is larger than ``MAX_JSON_BYTES``.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes, which no real model needs")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def read_object(path: Path, *, unique_keys: bool) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Raises:
        CheckpointError: ``read_bounded`` or ``parse_object`` refuses it.
    """
    return parse_object(read_bounded(path), path, unique_keys=unique_keys)


def parse_object(text: bytes, path: Path, *, unique_keys: bool) -> dict[str, Any]:
    """Return the JSON object in ``text``, which was read from ``path``.

    Raises:
        CheckpointError: not UTF-8 JSON, beyond one of the bounds, not an object or, with ``unique_keys``, an object
            that names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if unique_keys and len(value) < len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise CheckpointError(f"{path} names {twice!r} twice: download the file again")
        return value

    if len(text) > MAX_JSON_BYTES or sum(map(text.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise CheckpointError(f"{path} holds more than any real model needs: download the file again")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download the file again")
    if _is_deep(value):
        raise CheckpointError(f"{path} is nested deeper than {MAX_DEPTH} levels: download the file again")
    return value


def _is_deep(value: dict[str, Any]) -> bool:
    """Whether lists and objects stand in one another beyond ``MAX_DEPTH``."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inside = (item for each in level for item in (each.values() if isinstance(each, dict) else each))
        level = [item for item in inside if isinstance(item, dict | list)]
    return bool(level)
