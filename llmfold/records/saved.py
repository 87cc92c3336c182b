"""Records of folds in the files of their outputs."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from llmfold.errors import CheckpointError, OutputError
from llmfold.jsonfile import read_object
from llmfold.records.fold import REPORT_FILE, FoldRecord
from llmfold.runtime.storage import replace_json

Save = Callable[[FoldRecord, Path], None]
"""Writes a record into the folder of its output, in whatever files."""


def save_record(record: FoldRecord, folder: Path) -> None:
    """Write report.json into ``folder``, whole or not at all; what stands there is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    replace_json(folder / REPORT_FILE, record.to_dict())


def load_record(folder: Path) -> FoldRecord:
    """Read the record of the output in ``folder``; what other versions of llmfold put there is not looked at.

    Raises:
        OutputError: there is none, or it cannot be read.
    """
    path = folder / REPORT_FILE
    if not path.exists():
        raise OutputError(f"{folder} has no {REPORT_FILE}: it is not a finished output of llmfold")
    try:
        stored = read_object(path, unique_keys=False)
        known = {item.name: stored[item.name] for item in fields(FoldRecord) if item.name in stored}
        return FoldRecord(**{**known, "output": folder})
    except (CheckpointError, TypeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): fold the model again") from error
