"""Reading JSON objects that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000  # the limit safetensors sets for its headers


def read_object(path: Path, *, unique_keys: bool) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Raises:
        CheckpointError: the file cannot be read, is larger than ``MAX_JSON_BYTES``, or ``parse_object`` refuses it.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes, which no real model needs")
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return parse_object(text, path, unique_keys=unique_keys)


def parse_object(text: bytes, path: Path, *, unique_keys: bool) -> dict[str, Any]:
    """Return the JSON object in ``text``, which was read from ``path``.

    Raises:
        CheckpointError: not UTF-8 JSON, not an object or, with ``unique_keys``, an object that names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if unique_keys and len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{path} names {twice!r} twice: download the file again")
        return value

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download the file again")
    return value
