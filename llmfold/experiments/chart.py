"""The picture of a comparison: lines over what is removed, or bars where there is one amount."""

import math
from collections.abc import Callable, Sequence

from llmfold.experiments.results import Row, W
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
            [Series(name, _points(line, decoder)) for name, line in lines_of(drawn, _loss).items()],
            title=f"{model}: perplexity against what is removed",
            subtitle=f"on {text}, lower is better{mean}",
            x_label=f"fraction of {whole} removed",
            y_label="perplexity (log scale)",
            log_y=True,
            level=("dense", dense),
        )
    drawn.sort(key=lambda row: row.excess.mean if row.excess else math.inf)
    bars = []
    for row in drawn:
        if row.excess:
            note = "no data" if row.data == "none" else row.data
            bars.append(Bar(row.method, row.excess.mean, row.excess.deviation, note, data_kind(row)))
    removed = [point.x for point in _points(drawn, decoder)]
    amount = (
        f"{min(removed):.1%}" if max(removed) - min(removed) < 1e-3 else f"{min(removed):.1%} to {max(removed):.1%}"
    )
    return bar_chart(
        bars,
        title=f"{model}: what removing {amount} of its {whole} costs",
        subtitle=f"log(perplexity / dense {dense:.2f}) on {text}, shorter is better{mean}",
        x_label="excess log-perplexity",
    )


def _loss(row: Row) -> float:
    return row.perplexity.mean if row.perplexity else 0.0


def lines_of(rows: Sequence[W], loss: Callable[[W], float]) -> dict[str, list[W]]:
    """Rows by line of a picture: by variant; where those are too many, of every method the best at each amount.

    Args:
        rows: of all amounts.
        loss: the lower, the better.
    """
    lines: dict[str, list[W]] = {}
    for row in rows:
        lines.setdefault(row.method, []).append(row)
    if len(lines) <= _MOST_LINES:
        return lines
    variants: dict[str, list[str]] = {}
    for name in lines:
        variants.setdefault(name.partition(":")[0], []).append(name)
    return {
        method if len(names) == 1 else f"{method}, best of {len(names)}": _best(
            [row for name in names for row in lines[name]], loss
        )
        for method, names in variants.items()
    }


def _best(rows: Sequence[W], loss: Callable[[W], float]) -> list[W]:
    """The row of lowest loss at each amount."""
    worst_first = sorted(rows, key=lambda row: -loss(row))
    return list({tuple(row.amount.items()): row for row in worst_first}.values())


def _points(rows: Sequence[Row], decoder: bool) -> list[Point]:
    """Perplexity over the fraction removed, in its order; ``rows`` have both."""
    numbers = ((row.removed_of(decoder), row.perplexity) for row in rows)
    points = [Point(x.mean, y.mean, y.deviation) for x, y in numbers if x and y]
    return sorted(points, key=lambda point: point.x)
