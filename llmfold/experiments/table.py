"""The tables of a comparison: Markdown for people and repositories, rich for the terminal."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmfold.experiments.results import Row, Spread
from llmfold.report.markdown import row as line

ABSENT = "–"
_SAMPLED, _OUTSIDE = "sampled from the model itself", "outside text"


@dataclass(frozen=True)
class Section:
    """One table: a heading, the dense row and the rows of one amount."""

    heading: str
    rows: Sequence[Row]


def data_kind(row: Row) -> int:
    """0 for nothing but the weights, 1 for tokens of the model's own, 2 for outside text."""
    return 2 if row.data.startswith(_OUTSIDE) else int(row.data == _SAMPLED)


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _spread(value: Spread | None, render: Callable[[float], str]) -> str:
    if value is None:
        return ABSENT
    return render(value.mean) + (f" ± {render(value.deviation)}" if value.deviation else "")


def _mean(value: Spread | None, render: Callable[[float], str]) -> str:
    return ABSENT if value is None else render(value.mean)


def _removed(row: Row, decoder: bool) -> Spread | None:
    return row.removed_decoder if decoder else row.removed


def _columns(decoder: bool) -> dict[str, Callable[[Row], str]]:
    """Heading and content of every column."""
    removed = "removed (decoder)" if decoder else "removed"
    return {
        "method": lambda r: r.method,
        "data used": lambda r: r.data or ABSENT,
        "perplexity": lambda r: _spread(r.perplexity, _perplexity),
        "excess log-ppl": lambda r: _spread(r.excess, "{:.3f}".format),
        "KL to dense": lambda r: _spread(r.kl, "{:.3f}".format),
        "top-1": lambda r: _mean(r.top1, "{:.1%}".format),
        "parameters": lambda r: _mean(r.parameters, "{:,.0f}".format),
        removed: lambda r: _mean(_removed(r, decoder), "{:.1%}".format),
        "seconds": lambda r: _mean(r.seconds, "{:.1f}".format),
        "seeds": lambda r: str(r.seeds or ABSENT),
    }


def _failures(rows: Iterable[Row]) -> list[str]:
    return [f"{row.method}: {error}" for row in rows for error in row.errors]


def markdown(section: Section, *, decoder: bool) -> str:
    """A Markdown table; what failed is listed below it with its reason."""
    columns = _columns(decoder)
    lines = [line(columns), "|---|---|" + "---:|" * (len(columns) - 2)]
    lines += [line(render(row) for render in columns.values()) for row in section.rows]
    failures = [f"- {failure}" for failure in _failures(section.rows)]
    if failures:
        lines += ["", "Not measured:", "", *failures]
    return "\n".join(lines) + "\n"


def terminal(section: Section, *, decoder: bool) -> RenderableType:
    """The same without what 80 columns have no room for."""
    all_columns = _columns(decoder)
    columns: dict[str, Callable[[Row], str]] = {
        "method": all_columns["method"],
        "perplexity": lambda r: _mean(r.perplexity, _perplexity),
        "excess": all_columns["excess log-ppl"],
        "KL": lambda r: _mean(r.kl, "{:.3f}".format),
        "top-1": all_columns["top-1"],
        "removed": lambda r: _mean(_removed(r, decoder), "{:.1%}".format),
        "s": all_columns["seconds"],
    }
    table = Table(box=None, padding=(0, 1), header_style="dim", title=section.heading, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for row in section.rows:
        table.add_row(*(Text(render(row)) for render in columns.values()))
    return Group(table, *(Text(failure) for failure in _failures(section.rows)), Text())
