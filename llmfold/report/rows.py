"""Rows that several tables of a report show: stages, widths, and what became of every layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llmfold.planning.cost import passes

SMALL = 0.01
"""Share of the time below which a stage has no row of its own."""
OTHER = "other"
ABSENT = "–"
_WIDTHS = {"MLP neurons": "intermediate", "query heads": "heads", "KV heads": "kv_heads"}


def without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table, heading first, without the columns that are empty in every row below it; the first column stays."""
    head, *body = rows
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] not in ("", ABSENT) for row in body)]
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


def arrow(before: int, after: int, separator: str = "") -> str:
    """``1024 → 768``, or the number alone where nothing changed; ``separator`` stands between thousands."""
    return f"{before:{separator}}" if before == after else f"{before:{separator}} → {after:{separator}}"


def width_rows(layers: Iterable[Mapping[str, Mapping[str, int]]], dash: str, separator: str = "") -> list[list[str]]:
    """Widths by layer, heading first; neighbouring layers that share theirs share a row.

    Args:
        layers: of a plan: ``before`` and ``after`` of every layer.
        dash: stands between the first and the last of several layers.
        separator: stands between thousands.
    """
    rows = [["layers", *_WIDTHS]]
    for layer, group in groupby(enumerate(layers), key=lambda pair: pair[1]):
        indices = [index for index, _ in group]
        span = f"{indices[0]}{dash}{indices[-1]}" if indices[1:] else str(indices[0])
        before, after = layer["before"], layer["after"]
        rows.append([span, *(arrow(before[key], after[key], separator) for key in _WIDTHS.values())])
    return rows


@dataclass(frozen=True)
class PartRow:
    """What the record of a fold holds of one part of a layer.

    Attributes:
        before: neurons or heads of the dense model.
        after: neurons or heads that are left.
        repair: ridge, and relative squared errors of what the part should add to the residual stream, on inputs held
            back: before repair and after it; None where nothing was repaired.
        clusters: how many merge several units, units of the largest, and their inertia over its lower bound; None where
            nothing was clustered.
    """

    before: int
    after: int
    repair: tuple[str, str, str] | None
    clusters: tuple[int, int, str] | None

    @property
    def widths(self) -> str:
        """``48 → 40``."""
        return f"{self.before} → {self.after}"


def part_rows(layers: Iterable[Mapping[str, Any]]) -> list[tuple[PartRow | None, PartRow | None]]:
    """MLP and heads of every layer of a record; None for a part that was left as it was."""
    return [(_part_row(layer.get("mlp")), _part_row(layer.get("attention"))) for layer in layers]


def _part_row(record: Mapping[str, Any] | None) -> PartRow | None:
    if not record:
        return None
    repair, clusters = None, None
    if "ridge" in record:
        errors = (record["error_before_repair"], record["error_after_repair"])
        before, after = (ABSENT if error is None else f"{error:.3f}" for error in errors)
        repair = (f"{record['ridge']:g}", before, after)
    if "cluster_sizes" in record:
        sizes = {int(size): count for size, count in record["cluster_sizes"].items()}
        merging = sum(count for size, count in sizes.items() if size > 1)
        bound = record["inertia_bound"]
        clusters = (merging, max(sizes), f"{record['inertia'] / bound:.2f}" if bound else ABSENT)
    return PartRow(record["before"], record["after"], repair, clusters)
