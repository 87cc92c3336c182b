"""Pieces of Markdown: tables, and text of others that must stay text."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = True) -> str:
    """A Markdown table, all columns but the first to the right, or all to the left."""
    rule = ["---", *(("---:" if right else "---") for _ in head[1:])]
    return "\n".join(map(row, (head, rule, *rows)))


def row(cells: Iterable[str]) -> str:
    """One line of a table; a bar or a line break in a cell cannot break it."""
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def code(text: object) -> str:
    """Text of the user's as code: whatever is in it, it stays text."""
    return f"`{plain(str(text).replace('`', ''))}`"


def plain(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def arrow(before: int, after: int) -> str:
    """``512 → 377``, or the number alone where nothing changed."""
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def percent(fraction: float) -> str:
    """``19.9 %``."""
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def megabytes(count: int) -> str:
    """``5.5 MB``."""
    return f"{count / 1e6:,.1f} MB"
