"""Text files, plain or compressed."""

import lzma
from pathlib import Path

UNREADABLE = (OSError, UnicodeDecodeError, lzma.LZMAError)
"""What :func:`read_plain_text` raises."""


def read_plain_text(path: Path, characters: int = -1) -> str:
    """The head of a UTF-8 file, plain or ``.xz``: at most ``characters``, or all of it."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        return file.read(characters)
