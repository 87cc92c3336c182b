"""The files of a report in the output folder: report.json for programs, report.html and README.md for people."""

from pathlib import Path

from llmfold.checkpoint.base_card import CARD_FILE
from llmfold.records.fold import PAGE_FILE, FoldRecord
from llmfold.records.saved import save_record
from llmfold.report import card
from llmfold.report.html import page
from llmfold.runtime.storage import replace_text


def save_report(report: FoldRecord, folder: Path) -> None:
    """Write the report into ``folder``, each file whole or not at all; what stands there is replaced.

    Raises:
        OSError: a file cannot be written.
    """
    save_record(report, folder)
    replace_text(folder / PAGE_FILE, page(report.to_dict()))
    replace_text(folder / CARD_FILE, card.render(report))
