"""Tables without what says nothing: empty columns, and stages that took no time to speak of."""

from collections.abc import Mapping, Sequence

from llmfold.planning.cost import passes

SMALL = 0.01
"""Share of the time below which a stage has no row of its own."""
OTHER = "other"
_EMPTY = ("", "–")


def without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table, heading first, without the columns that are empty in every row below it; the first column stays."""
    head, *body = rows
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] not in _EMPTY for row in body)]
    return [[row[i] for i in kept] for row in rows]


def main_stages(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """Stages in their order, those under one percent of the time together at the end; none without time."""
    total = sum(seconds.values())
    large = [(name, spent) for name, spent in seconds.items() if spent >= SMALL * total and spent > 0]
    rest = total - sum(spent for _, spent in large)
    return [*large, (OTHER, rest)] if len(large) < sum(spent > 0 for spent in seconds.values()) else large


def stage_rows(seconds: Mapping[str, float], forward_pass: float | None) -> list[tuple[str, str, str]]:
    """Heading, main stages and their sum: name, seconds, and forward passes of the dense model where one was timed."""
    stages = main_stages(seconds)
    rows = [*stages, ("together", sum(spent for _, spent in stages))] if stages else []
    in_passes = passes(dict(rows), forward_pass)
    body = [(name, f"{spent:,.1f}", f"{in_passes[name]:,.1f}" if in_passes else "") for name, spent in rows]
    return [("stage", "seconds", "forward passes"), *body]
