"""Pieces of Markdown: tables, and text of others that must stay text."""

from collections.abc import Iterable, Sequence


def table(rows: Sequence[Sequence[str]], words: int = 1, gap: str = " ") -> str:
    """A Markdown table.

    Args:
        rows: heading first.
        words: how many columns hold words and stand to the left; the others hold numbers and stand to the right.
        gap: stands around the dashes of the rule.

    Returns:
        Its lines, without a newline behind the last.
    """
    head, *body = rows
    rule = f"{gap}|{gap}".join("---" if column < words else "---:" for column in range(len(head)))
    return "\n".join([_line(head), f"|{gap}{rule}{gap}|", *map(_line, body)])


def _line(cells: Iterable[str]) -> str:
    """One line of a table; a bar or a line break in a cell cannot break it."""
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def code(text: object) -> str:
    """Text of the user's as code: whatever is in it, it stays text."""
    return f"`{plain(str(text).replace('`', ''))}`"


def plain(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def percent(fraction: float) -> str:
    """``19.9 %``."""
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def megabytes(count: int) -> str:
    """``5.5 MB``."""
    return f"{count / 1e6:,.1f} MB"
