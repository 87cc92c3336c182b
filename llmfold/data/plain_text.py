"""Local files of text by what they are: prose or a table of documents, plain or compressed."""

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from llmfold.errors import UsageError

TEXT_COLUMN = "text"
"""Column of a table that holds its documents, unless the user names another."""
EXTRA = "need the eval extra: pip install 'llmfold[eval]'"
_TABLES: dict[str, tuple[str, dict[str, str]]] = {
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
"""Names that tables end in, and who reads them in the library ``datasets``, with what options."""
_PACKED: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open}
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error)
MAX_CHARACTERS = 1 << 28
"""Of a text, whose tokens are all held: a hundred times the longest that perplexity is measured on."""
_FIRST_LINE = 1 << 24
"""Characters of a first line that is looked at, which bounds memory where a text is one line."""
_FEW = 100_000
"""Lists and objects in a line of a table, at most."""
_LONGEST_LINE = 1 << 26
"""Bytes of a line in a packed table, which may take next to nothing of the file."""
_DEEPEST, _COLUMNS = 64, 1000
"""Levels of values in a table, and columns of one without types, for each of which its reader makes arrays."""
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?$)|[\[\]{}]', re.DOTALL)
"""Brackets of JSON, and its strings, whose brackets do not count."""


def read_plain_text(path: Path, column: str = TEXT_COLUMN, characters: int = -1) -> str:
    """The head of a local file: at most ``characters`` of prose, or as many documents as hold them; all by default.

    Args:
        path: UTF-8 prose, or a table of documents (JSON lines, JSON, Parquet, CSV, TSV) by the end of its name; either
            may be packed as ``.gz`` or ``.xz``.
        column: of a table.
        characters: wanted; -1 for all.

    Raises:
        UsageError: it cannot be read as what its name says, has no such column, or holds JSON under the name of prose.
    """
    table = _TABLES.get((path.with_suffix("") if path.suffix.lower() in _PACKED else path).suffix.lower())
    if table is not None:
        return _read_table(path, *table, column, characters)
    try:
        with _open(path) as file:
            first = file.readline(_FIRST_LINE)
            if _is_json(first):
                raise UsageError(
                    f"text {path} holds JSON, which would be read as prose: give it a name that ends in .jsonl "
                    "(or .json), and name the column of the text by --text-column"
                )
            wanted = MAX_CHARACTERS + 1 if characters < 0 else min(characters, MAX_CHARACTERS)
            text: str = first + file.read(max(wanted - len(first), 0))
    except _UNREADABLE as error:
        raise UsageError(f"text {path} cannot be read as UTF-8: {error}") from error
    if characters < 0 and len(text) > MAX_CHARACTERS:
        raise UsageError(f"text {path} has more than {MAX_CHARACTERS} characters: cut a shorter one from it")
    return text if characters < 0 else text[:characters]


def join_documents(rows: Iterable[Mapping[str, Any]], column: str, characters: int, name: str) -> str:
    """Documents of a table joined by blank lines, the first that hold ``characters``, or all where that is negative.

    Rows that have none are passed over.

    Raises:
        UsageError: no such column, or one that holds anything but text; ``name`` says of what.
    """
    pieces, size = [], 0
    for row in rows:
        if column not in row:
            raise UsageError(
                f"{name} has no column {column!r} but {', '.join(map(repr, row))}: name that of the text by "
                "--text-column"
            )
        if not isinstance(row[column], str | None):
            raise UsageError(
                f"column {column!r} of {name} holds {type(row[column]).__name__}, not text: name another by "
                "--text-column, or make one of text"
            )
        if row[column] is None:
            continue
        pieces.append(row[column])
        size += len(pieces[-1]) + 2
        if size > MAX_CHARACTERS:
            raise UsageError(f"{name} has more than {MAX_CHARACTERS} characters of text: cut a shorter one from it")
        if 0 <= characters <= size:
            break
    if not pieces:
        raise UsageError(f"column {column!r} of {name} holds no text: name another by --text-column")
    return "\n\n".join(pieces)


def _open(path: Path) -> IO[Any]:
    reader = _PACKED.get(path.suffix.lower())
    return reader(path, "rt", encoding="utf-8") if reader else path.open(encoding="utf-8")


def _is_json(line: str) -> bool:
    """Whether a line is a JSON object, or a list of them."""
    if line.count("[") + line.count("{") > _FEW:
        return False
    try:
        value = json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _read_table(path: Path, builder: str, options: Mapping[str, str], column: str, characters: int) -> str:
    if not path.is_file():
        raise UsageError(f"text {path} does not exist")
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"text {path} is a table, and tables {EXTRA}") from error
    try:
        _refuse_bombs(path, builder)
        rows = datasets.load_dataset(builder, data_files=str(path), split="train", streaming=True, **options)
        return join_documents(rows, column, characters, f"text {path}")
    except UsageError:
        raise
    except Exception as error:  # readers of formats raise whatever they do
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"text {path} cannot be read as {builder}: {reason}") from error


def _refuse_bombs(path: Path, builder: str) -> None:
    """Refuse what ends a reader of tables: it holds a line whole, and descends into JSON until its stack is full."""
    packed = _PACKED.get(path.suffix.lower())
    with packed(path, "rb") if packed else path.open("rb") as file:
        if builder == "csv" and file.readline(_LONGEST_LINE).count(b",") >= _COLUMNS:
            raise UsageError(f"text {path} has more than {_COLUMNS} columns: keep that of the text")
        if packed is None and builder != "json":
            return
        while line := file.readline(_LONGEST_LINE + 1):
            if packed and len(line) > _LONGEST_LINE:
                raise UsageError(f"text {path} has a line of more than {_LONGEST_LINE} bytes: break it into documents")
            if builder == "json" and _is_deep(line):
                raise UsageError(f"text {path} nests values deeper than {_DEEPEST} levels: keep the column of the text")


def _is_deep(line: bytes) -> bool:
    if line.count(b"[") + line.count(b"{") <= _DEEPEST:
        return False
    depth = 0
    for found in _BRACKETS.finditer(line):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
        if depth > _DEEPEST:
            return True
    return False
