"""The picture of a comparison: lines over what is removed, or bars where there is one amount."""

import math
from collections.abc import Sequence

from llmfold.experiments.results import Row
from llmfold.experiments.table import data_kind
from llmfold.report.plot import Bar, Point, Series, bar_chart, line_chart

_MOST_LINES = 8


def chart(model: str, text: str, dense: float, rows: Sequence[Row], *, decoder: bool) -> str | None:
    """Draw all rows that were measured.

    Args:
        model: its name.
        text: name of the text.
        dense: perplexity of the dense model.
        rows: of all amounts.
        decoder: whether fractions are of the decoder layers' parameters.

    Returns:
        The SVG: perplexity against the fraction removed if there are several amounts, else excess log-perplexity by
        method, best first. None if nothing was measured.
    """
    drawn = [row for row in rows if row.perplexity and math.isfinite(row.perplexity.mean)]
    if not drawn:
        return None
    seeds = max(row.seeds for row in drawn)
    mean = f", mean and spread of {seeds} seeds" if seeds > 1 else ""
    whole = "decoder parameters" if decoder else "parameters"
    if len({tuple(row.amount.items()) for row in rows}) > 1:
        return line_chart(
            [Series(name, sorted((_point(r, decoder) for r in line), key=_x)) for name, line in _lines(drawn).items()],
            title=f"{model}: perplexity against what is removed",
            subtitle=f"on {text}, lower is better{mean}",
            x_label=f"fraction of {whole} removed",
            y_label="perplexity (log scale)",
            log_y=True,
            level=("dense", dense),
        )
    drawn.sort(key=lambda row: row.excess.mean if row.excess else math.inf)
    bars = [
        Bar(r.method, r.excess.mean, r.excess.deviation, _note(r), data_kind(r)) for r in drawn if r.excess is not None
    ]
    removed = [_point(row, decoder).x for row in drawn]
    amount = (
        f"{min(removed):.1%}" if max(removed) - min(removed) < 1e-3 else f"{min(removed):.1%} to {max(removed):.1%}"
    )
    return bar_chart(
        bars,
        title=f"{model}: what removing {amount} of its {whole} costs",
        subtitle=f"log(perplexity / dense {dense:.2f}) on {text}, shorter is better{mean}",
        x_label="excess log-perplexity",
    )


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by line of the picture: by variant; where those are too many, of every method the best at each amount."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.method, []).append(row)
    if len(lines) <= _MOST_LINES:
        return lines
    variants: dict[str, list[str]] = {}
    for name in lines:
        variants.setdefault(name.partition(":")[0], []).append(name)
    return {
        method if len(names) == 1 else f"{method}, best of {len(names)}": _best([r for n in names for r in lines[n]])
        for method, names in variants.items()
    }


def _best(rows: Sequence[Row]) -> list[Row]:
    """The row of lowest perplexity at each amount."""
    worst_first = sorted(rows, key=lambda row: -row.perplexity.mean if row.perplexity else 0.0)
    return list({tuple(row.amount.items()): row for row in worst_first}.values())


def _note(row: Row) -> str:
    return "no data" if row.data == "none" else row.data


def _x(point: Point) -> float:
    return point.x


def _point(row: Row, decoder: bool) -> Point:
    removed = row.removed_decoder if decoder else row.removed
    assert removed is not None
    assert row.perplexity is not None
    return Point(removed.mean, row.perplexity.mean, row.perplexity.deviation)
