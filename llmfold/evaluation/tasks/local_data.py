"""Data of the tasks in this folder, from local files with the original fields of the Hugging Face data sets.

The folder of the files comes in as ``data_dir`` of lm-eval's metadata: ``--metadata '{"data_dir": "DIR"}'`` on its own
command line, ``--data-dir DIR`` on that of ``llmfold eval``. What stock tasks compute by functions of their own is
computed by those functions here.
"""

import re
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks.hellaswag.utils import process_docs as hellaswag_docs
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results as wikitext_results
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer as wikitext_target
from lm_eval.tasks.winogrande.preprocess_winogrande import doc_to_choice as winogrande_choice
from lm_eval.tasks.winogrande.preprocess_winogrande import doc_to_target as winogrande_target
from lm_eval.tasks.winogrande.preprocess_winogrande import doc_to_text as winogrande_text

__all__ = [
    "boolq_labels",
    "hellaswag_docs",
    "load",
    "wikitext_pages",
    "wikitext_results",
    "wikitext_target",
    "winogrande_choice",
    "winogrande_target",
    "winogrande_text",
]

_TITLE = re.compile(r"^ = [^=].*[^=] = \n$")


def load(*, data_dir: str, file: str, **_: Any) -> dict[str, Any]:
    """Read JSON lines as the validation split."""
    return {"validation": datasets.Dataset.from_json(str(Path(data_dir) / file))}


def boolq_labels(dataset: Any) -> Any:
    """BoolQ's answer, true or false, as the label of SuperGLUE, which the stock task reads."""
    return dataset.map(lambda document: {"label": int(document["answer"])})


def wikitext_pages(*, data_dir: str, file: str, **_: Any) -> dict[str, Any]:
    """The test split of WikiText-2, rows joined by blank lines, as the pages that the stock task reads."""
    rows = (Path(data_dir) / file).read_text(encoding="utf-8").split("\n\n")
    pages = [""]
    for row in rows:
        line = (row.strip("\n") or " ") + "\n"
        if _TITLE.match(line) and pages[-1].strip():
            pages.append("")
        pages[-1] += line
    return {"test": datasets.Dataset.from_dict({"page": pages})}
