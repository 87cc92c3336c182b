"""What engines do with a folder, as a table and as a line for a terminal."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from llmfold.engines import ENGINES, Verdict


def engine_table(verdicts: Mapping[str, Verdict]) -> Table:
    """A row for every engine: the verdict, what it was checked on, and what else is to be said."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("engine", no_wrap=True)
    table.add_column("checked on", style="dim", overflow="fold")
    table.add_column("verdict", overflow="fold")
    table.add_column("why", overflow="fold")
    for key, verdict in verdicts.items():
        engine = ENGINES[key]
        table.add_row(*map(Text, (engine.title, engine.checked, verdict.words, verdict.reason)))
    return table


def engine_line(verdicts: Mapping[str, Verdict]) -> str:
    """Engines by what they do: those that load it, those that need a flag, those that do not."""
    groups: dict[str, list[str]] = {}
    for key, verdict in verdicts.items():
        groups.setdefault(verdict.words, []).append(ENGINES[key].title)
    parts = [f"{words}: {', '.join(titles)}" for words, titles in groups.items()]
    return f"{'; '.join(parts)} (llmfold doctor says why)"
