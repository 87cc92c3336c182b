"""The files of a report in the output folder: report.json for programs, report.html and README.md for people."""

import json
import os
from pathlib import Path

from llmfold.hub import card
from llmfold.report.html import page
from llmfold.report.record import REPORT_FILE, FoldReport

PAGE_FILE = "report.html"


def save_report(report: FoldReport, folder: Path) -> None:
    """Write the report into ``folder``, each file whole or not at all; what stands there is replaced.

    Raises:
        OSError: a file cannot be written.
    """
    content = report.to_dict()
    _write(folder / REPORT_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _write(folder / PAGE_FILE, page(content))
    card.write(folder, card.render(report))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
