"""The tables of a comparison: Markdown for people and repositories, rich for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from rich.console import Group, RenderableType
from rich.text import Text

from llmfold.experiments.results import Row, Spread, W
from llmfold.report.console import rich_table
from llmfold.report.rendering import render
from llmfold.report.rows import ABSENT

_SAMPLED, _OUTSIDE = "sampled from the model itself", "outside text"


@dataclass(frozen=True)
class Section(Generic[W]):
    """One table: a heading, the dense row and the rows of one amount."""

    heading: str
    rows: Sequence[W]


@dataclass(frozen=True)
class Page:
    """The page of a comparison of any kind.

    Attributes:
        comparison: model, command, versions and machine, as in compare.json.
        notes: in whole sentences.
        tables: of each a heading, its rows, the heading of columns first, and what failed.
        pictures: file names of charts beside it.
    """

    comparison: Mapping[str, Any]
    notes: Sequence[str]
    tables: Sequence[tuple[str, list[list[str]], list[str]]]
    pictures: Sequence[str]

    def markdown(self) -> str:
        """With pictures beside it."""
        return render("comparison.md", **vars(self))

    def html(self, charts: Sequence[str]) -> str:
        """With ``charts``, the SVG of its pictures, in it."""
        return render("comparison.html", **vars(self), charts=charts)


Columns = Mapping[str, Callable[[W], str]]
"""Heading and content of every column."""


def data_kind(row: Row) -> int:
    """0 for nothing but the weights, 1 for tokens of the model's own, 2 for outside text."""
    return 2 if row.data.startswith(_OUTSIDE) else int(row.data == _SAMPLED)


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def spread(value: Spread | None, render: Callable[[float], str]) -> str:
    """``12.3 ± 0.4``; the deviation where there is one."""
    if value is None:
        return ABSENT
    return render(value.mean) + (f" ± {render(value.deviation)}" if value.deviation else "")


def mean(value: Spread | None, render: Callable[[float], str]) -> str:
    """``12.3``."""
    return ABSENT if value is None else render(value.mean)


def _columns(decoder: bool) -> Columns[Row]:
    """Heading and content of every column; ``decoder``: whether fractions are of the decoder layers' parameters."""
    removed = "removed (decoder)" if decoder else "removed"
    return {
        "method": lambda row: row.method,
        "data used": lambda row: row.data or ABSENT,
        "perplexity": lambda row: spread(row.perplexity, _perplexity),
        "excess log-ppl": lambda row: spread(row.excess, "{:.3f}".format),
        "KL to dense": lambda row: spread(row.kl, "{:.3f}".format),
        "top-1": lambda row: mean(row.top1, "{:.1%}".format),
        "parameters": lambda row: mean(row.parameters, "{:,.0f}".format),
        removed: lambda row: mean(row.removed_of(decoder), "{:.1%}".format),
        "seconds": lambda row: mean(row.seconds, "{:.1f}".format),
        "seeds": lambda row: str(row.seeds or ABSENT),
    }


def _short_columns(decoder: bool) -> Columns[Row]:
    """The same without what 80 columns have no room for."""
    long = _columns(decoder)
    return {
        "method": long["method"],
        "perplexity": lambda row: mean(row.perplexity, _perplexity),
        "excess": long["excess log-ppl"],
        "KL": lambda row: mean(row.kl, "{:.3f}".format),
        "top-1": long["top-1"],
        "removed": lambda row: mean(row.removed_of(decoder), "{:.1%}".format),
        "s": long["seconds"],
    }


def _rows(section: Section[W], columns: Columns[W]) -> list[list[str]]:
    """Cells of a table, heading first."""
    return [[*columns], *([cell(row) for cell in columns.values()] for row in section.rows)]


def _failures(section: Section[W]) -> list[str]:
    """What failed, each with its reason."""
    return [f"{row.method}: {error}" for row in section.rows for error in row.errors]


def document(
    facts: Mapping[str, Any],
    dense: Mapping[str, Any],
    sections: Sequence[Section[Row]],
    *,
    decoder: bool,
    picture: str | None,
) -> Page:
    """The page of a comparison: its tables with everything that a reader needs to check them.

    Args:
        facts: model, command, versions and machine, as in compare.json.
        dense: protocols, as in compare.json.
        sections: one table for every amount.
        decoder: whether fractions are of the decoder layers' parameters.
        picture: file name of the chart, if there is one.
    """
    notes = [f"Perplexity: {dense['protocol']}.", "Excess log-ppl: log(perplexity / dense perplexity)."]
    if dense["fidelity_protocol"]:
        notes.append(f"Fidelity: {dense['fidelity_protocol']}.")
    notes += [DEVIATIONS, "Seconds: of the fold, without its reload check."]
    return page_of(facts, sections, _columns(decoder), notes, [picture] if picture else [])


DEVIATIONS = "±: sample standard deviation over seeds, where they differ."


def page_of(
    facts: Mapping[str, Any],
    sections: Sequence[Section[W]],
    columns: Columns[W],
    notes: Sequence[str],
    pictures: Sequence[str],
) -> Page:
    """The page of a comparison of any kind: pictures, tables, and notes in whole sentences."""
    tables = [(section.heading, _rows(section, columns), _failures(section)) for section in sections]
    return Page(facts, notes, tables, pictures)


def terminal(section: Section[Row], *, decoder: bool) -> RenderableType:
    """A table for a terminal."""
    return terminal_of(section, _short_columns(decoder))


def terminal_of(section: Section[W], columns: Columns[W]) -> RenderableType:
    """A table for a terminal, with what failed below it."""
    table = rich_table(_rows(section, columns), padding=(0, 1), title=section.heading, title_justify="left")
    return Group(table, *map(Text, _failures(section)), Text())
