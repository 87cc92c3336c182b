"""Texts to measure on: a local file, or the test split of WikiText-2 as the papers read it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from llmfold.data.plain_text import TEXT_COLUMN, read_plain_text
from llmfold.errors import UsageError

WIKITEXT = "wikitext"
_HUB_NAME, _HUB_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"


@dataclass(frozen=True)
class Text:
    """A text, the name under which it may be published, and the SHA-256 of its UTF-8 bytes."""

    name: str
    content: str
    sha256: str


def read_text(name: str, column: str = TEXT_COLUMN) -> Text:
    """Read a text whole.

    Args:
        name: a file as of :func:`read_plain_text`, or ``wikitext``: the raw test split of WikiText-2, rows joined by
            blank lines as in the evaluation code of GPTQ, SparseGPT, Wanda, FLAP and SliceGPT.
        column: that holds the text, where the file is a table.

    Raises:
        UsageError: no such file, one that cannot be read as text, or the data set cannot be had.
    """
    path = Path(os.path.expanduser(name))
    if name == WIKITEXT and not os.path.isfile(path):
        content, public = _wikitext(), f"{_HUB_CONFIG} test"
    else:
        content, public = _local(path, column), path.name
    return Text(public, content, hashlib.sha256(content.encode()).hexdigest())


def _local(path: Path, column: str) -> str:
    if not os.path.exists(path):
        raise UsageError(f"text {path} does not exist; pass a file, or 'wikitext'")
    return read_plain_text(path, column)


def _wikitext() -> str:
    try:
        import datasets
    except ImportError as error:
        raise UsageError("wikitext needs the eval extra: pip install 'llmfold[eval]', or pass a local file") from error
    try:
        rows = datasets.load_dataset(_HUB_NAME, _HUB_CONFIG, split="test")
    except Exception as error:  # the loader raises whatever its transport and format readers do
        raise UsageError(
            f"{_HUB_NAME} cannot be had from the hub ({type(error).__name__}): check the network, or pass a local file"
        ) from error
    return "\n\n".join(rows["text"])
