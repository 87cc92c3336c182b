"""What ``--method paper`` costs."""

from collections.abc import Iterator

from llmfold.planning.cost import Cost, Stage
from llmfold.planning.plan import FoldPlan

_BYTES_PER_ENTRY = {"distances": 40, "bound": 100, "cluster": 120, "inertia": 40}
"""Memory traffic of clustering by entry of the Gram: 3e-8 s in all on the machine it was measured on, at n = 11,008."""
_PANEL_BYTES = 200_000_000
"""What clustering holds beside its matrix."""


def merging_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Distances between the units of every layer, and their merging; no tokens."""
    matrices = 2 if plan.config.cluster == "hartigan" else 1
    if plan.config.alignment == "gauge":
        matrices = 2 if plan.config.cluster == "ward" else 3
    narrowed = [a.intermediate for a, b in zip(plan.before.layers, plan.after.layers, strict=True) if a != b]
    area = max((matrices * 4 * n**2 + _PANEL_BYTES for n in narrowed), default=0)
    return Cost.of(_stages(plan), work_area=area)


def _stages(plan: FoldPlan) -> Iterator[Stage]:
    shape, config = plan.before, plan.config
    gauge = config.alignment == "gauge"
    for a, b in zip(shape.layers, plan.after.layers, strict=True):
        for _ in range(shape.mlps(a) if a.intermediate != b.intermediate else 0):
            yield from _clustering(config.cluster, a.intermediate, 3 * shape.hidden, distances_given=gauge)
            if config.repair != "none":
                yield Stage("repair", memory=8.0 * 3 * a.intermediate * shape.hidden)
            yield Stage("merge", memory=8.0 * 3 * a.intermediate * shape.hidden)
        if a.heads != b.heads:
            units, size = a.head_units, 2 * (a.heads + a.kv_heads) * shape.head_dim * shape.hidden
            if gauge and a.grouped:
                yield Stage("align", large=2.0 * units * size * shape.head_dim)
                yield Stage("cluster")
            else:
                yield from _clustering(config.cluster, units, size // units, distances_given=False)
            yield Stage("merge", memory=8.0 * size)


def _clustering(method: str, units: int, features: int, *, distances_given: bool) -> Iterator[Stage]:
    yield Stage("gram", large=2.0 * units**2 * features)
    passed = {"distances"} if method == "kmeans" else set()
    for name, traffic in _BYTES_PER_ENTRY.items():
        if name == "cluster" or not (distances_given or name in passed):
            yield Stage(name, memory=float(traffic) * units**2)
