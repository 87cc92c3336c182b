"""Results by what decides them, kept in a file so that an interrupted command goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llmfold.errors import CheckpointError, UsageError
from llmfold.jsonfile import read_object
from llmfold.runtime.storage import write_text

FORMAT = 1
Parsed = TypeVar("Parsed")


def cache_key(*parts: Any) -> str:
    """32 hex digits that differ if any part (of JSON's types) does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_results(path: Path, noun: str, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed | None:
    """What an earlier command left at ``path``; None where nothing stands there, or something of another format.

    Raises:
        UsageError: the file is no ``noun`` of llmfold.
    """
    if not path.exists():
        return None
    try:
        content = read_object(path, unique_keys=False)
        return parse(content) if content["format"] == FORMAT else None
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no {noun} that can be continued: remove it, or pass another --output") from error


def save_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps({"format": FORMAT, **content}, indent=2, ensure_ascii=False) + "\n")


class ResultCache:
    """Results of an evaluation by their keys."""

    def __init__(self, path: Path | None) -> None:
        """Read what an earlier run left at ``path``; with None, results live as long as this object.

        Raises:
            UsageError: the file there is not one of ours.
        """
        self._path = path
        self._results: dict[str, Any] = {}
        if path is not None:
            self._results = load_results(path, "evaluation", lambda content: dict(content["finished"])) or {}

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result under ``key``; measured, and saved at once, if it is new."""
        if key not in self._results:
            self._results[key] = measure()
            self.save({})
        result: dict[str, Any] = self._results[key]
        return result

    def save(self, evaluation: Mapping[str, Any]) -> None:
        """Write the file, ``evaluation`` before the results."""
        if self._path is not None:
            save_results(self._path, {**evaluation, "finished": self._results})
