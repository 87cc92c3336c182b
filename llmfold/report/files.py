"""The files of a report in the output folder: report.json for programs, report.html and README.md for people."""

import json
from pathlib import Path

from llmfold.checkpoint.storage import replace_text
from llmfold.hub import card
from llmfold.hub.base_card import CARD_FILE
from llmfold.report.html import page
from llmfold.report.record import PAGE_FILE, REPORT_FILE, FoldReport


def save_report(report: FoldReport, folder: Path) -> None:
    """Write the report into ``folder``, each file whole or not at all; what stands there is replaced.

    Raises:
        OSError: a file cannot be written.
    """
    content = report.to_dict()
    replace_text(folder / REPORT_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    replace_text(folder / PAGE_FILE, page(content))
    replace_text(folder / CARD_FILE, card.render(report))
