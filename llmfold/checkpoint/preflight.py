"""What must hold of an output path before anything is written there; these checks only look."""

import os
from pathlib import Path

from llmfold.errors import OutputError, UsageError

MARKER_FILE = "llmfold.json"


def resolved(path: Path) -> Path:
    """Return ``path`` absolute and free of links; raises UsageError when it cannot be."""
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{path} is not a usable path: {error}") from error


def check_apart(output: Path, source: Path) -> None:
    """Raise UsageError when one of the two resolved folders is inside the other."""
    if output.is_relative_to(source) or source.is_relative_to(output):
        raise UsageError(f"the output {output} overlaps the model folder {source}: choose an output outside of it")


def check_replaceable(output: Path, overwrite: bool) -> None:
    """Raise UsageError unless ``output`` is free or, with ``overwrite``, an earlier output of llmfold."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"the output {output} is a file: choose a folder")
    if not is_occupied(output):
        return
    if not overwrite:
        raise UsageError(f"the output {output} exists: choose another, or pass --overwrite to replace it")
    if not (output / MARKER_FILE).is_file():
        raise UsageError(
            f"the output {output} was not made by llmfold (it has no {MARKER_FILE}), so it is not replaced: "
            "choose another, or empty it yourself"
        )


def check_writable(folder: Path) -> None:
    """Raise OutputError (UsageError for a file in the way) when ``folder`` cannot be made or written into."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: the output cannot be made inside of it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} is not writable: choose another output")


def is_occupied(folder: Path) -> bool:
    """Tell whether ``folder`` is a folder with something in it."""
    return folder.is_dir() and any(folder.iterdir())
