"""Reports read back from finished outputs."""

import json
from dataclasses import fields
from pathlib import Path

from llmfold.errors import OutputError
from llmfold.report.record import REPORT_FILE, FoldReport


def load_report(folder: Path) -> FoldReport:
    """Read the report of the output in ``folder``; what other versions of llmfold put there is not looked at.

    Raises:
        OutputError: there is none, or it cannot be read.
    """
    path = folder / REPORT_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {item.name: found[item.name] for item in fields(FoldReport) if item.name in found}
        return FoldReport(**{**known, "output": folder})
    except FileNotFoundError as error:
        raise OutputError(f"{folder} has no {REPORT_FILE}: it is not a finished output of llmfold") from error
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path} cannot be read ({type(error).__name__}): fold the model again") from error
