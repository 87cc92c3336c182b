"""The picture of a comparison: lines over what is removed, or bars where there is one amount."""

import math
from collections.abc import Sequence

from llmfold.evaluation.results import Row
from llmfold.evaluation.table import data_kind
from llmfold.report.plot import Bar, Point, Series, bar_chart, line_chart


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
        methods = dict.fromkeys(row.method for row in drawn)
        series = [Series(m, sorted((_point(r, decoder) for r in drawn if r.method == m), key=_x)) for m in methods]
        return line_chart(
            series,
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


def _note(row: Row) -> str:
    return "no data" if row.data == "none" else row.data


def _x(point: Point) -> float:
    return point.x


def _point(row: Row, decoder: bool) -> Point:
    removed = row.removed_decoder if decoder else row.removed
    assert removed is not None
    assert row.perplexity is not None
    return Point(removed.mean, row.perplexity.mean, row.perplexity.deviation)
