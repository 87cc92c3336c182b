"""Tables on standard output."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


def rich_table(rows: Sequence[Sequence[str]], *, words: int = 1, no_wrap: bool = True, **options: Any) -> Table:
    """A table without lines.

    Args:
        rows: heading first.
        words: how many columns hold words and stand to the left; the others hold numbers and stand to the right.
        no_wrap: whether cells stay on one line.
        options: of :class:`rich.table.Table`.
    """
    table = Table(**{"box": None, "padding": (0, 2), "header_style": "dim", **options})
    head, *body = rows
    for column, name in enumerate(head):
        table.add_column(name, justify="left" if column < words else "right", no_wrap=no_wrap)
    for row in body:
        table.add_row(*map(Text, row))
    return table


class _SilentWithoutReader(Console):
    """A console that goes silent when its reader has gone, instead of stopping the work."""

    def on_broken_pipe(self) -> None:
        """Send whatever else is printed nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_table(table: RenderableType) -> None:
    """Print to standard output, and flush."""
    _SilentWithoutReader(highlight=False).print(table)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
