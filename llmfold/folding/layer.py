"""Folding one decoder layer: cluster its neurons and its heads, merge each cluster, repair what the merge changed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llmfold.architectures import ATTENTION_ROLES, MLP_ROLES, LayerShape, ModelShape, Role
from llmfold.clustering import Clustering, Method, cluster
from llmfold.clustering.similarity import cluster_distances
from llmfold.folding.alignment import PairwiseAligner, balance
from llmfold.folding.grouping import Groups
from llmfold.folding.heads import aligned_views, head_groups, merge_heads, unit_rows, unit_views
from llmfold.folding.neurons import gauge_distances, gauge_factors, merge_neurons, neuron_rows, value_rows
from llmfold.repair.variance import variance_scale

Weights = Mapping[Role, Tensor]


@dataclass(frozen=True)
class MergeOptions:
    """How units are clustered (``ward``, ``kmeans``, ``hartigan``), aligned (``gauge``, ``none``) and repaired."""

    cluster: Method = "ward"
    align: str = "none"
    repair: str = "none"
    seed: int = 0


@dataclass
class LayerRecord:
    """What happened in one layer, for the report: clusters of both parts, and seconds by stage."""

    mlp: dict[str, Any] | None = None
    attention: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class _Clock:
    """Adds the time since the last call to a stage of a record."""

    def __init__(self, record: LayerRecord) -> None:
        self._seconds, self._last = record.seconds, time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now


def fold_layer(
    weights: Weights, shape: ModelShape, before: LayerShape, after: LayerShape, options: MergeOptions
) -> tuple[dict[Role, Tensor], LayerRecord]:
    """Fold a decoder layer from widths ``before`` to widths ``after`` by the weights alone.

    Args:
        weights: all tensors of the layer by role, in their stored dtype.
        shape: the model's shape (biases, query/key norms).
        before: widths of the layer as it is.
        after: widths it shall have.
        options: clustering, alignment, repair and seed.

    Returns:
        The folded tensors in their stored dtype, and the record. A part whose width stays keeps its bits.
    """
    record = LayerRecord()
    folded = dict(weights)
    clock = _Clock(record)
    if after.intermediate < before.intermediate:
        mlp = {role: weights[role] for role in MLP_ROLES if role in weights}
        merged, record.mlp = _fold_mlp(mlp, after.intermediate, options, clock)
        folded.update(merged)
    if after.heads < before.heads:
        attention = {role: weights[role] for role in ATTENTION_ROLES if role in weights}
        merged, record.attention = _fold_attention(attention, shape, before, after, options, clock)
        folded.update(merged)
    return folded, record


def _describe(found: Clustering) -> dict[str, Any]:
    histogram = Groups(found.labels).histogram()
    return {
        "before": len(found.labels),
        "after": found.k,
        "cluster_sizes": {str(size): count for size, count in histogram.items()},
        "inertia": found.inertia,
        "inertia_bound": found.bound,
    }


def _fold_mlp(
    mlp: Weights, width: int, options: MergeOptions, clock: _Clock
) -> tuple[dict[Role, Tensor], dict[str, Any]]:
    factors = None
    if options.align == "gauge":
        distances = gauge_distances(mlp)
        found = cluster_distances(distances, width, method=options.cluster, seed=options.seed, overwrite=True)
        del distances
        groups = Groups(found.labels)
        factors = gauge_factors(mlp, groups)
    else:
        found = cluster(neuron_rows(mlp), width, method=options.cluster, seed=options.seed)
        groups = Groups(found.labels)
    clock("cluster")
    scale = None
    if options.repair == "variance":
        gate, up, down = value_rows(mlp)
        inverse = None if factors is None else 1 / factors
        scales = [None] * len(gate) + [factors] * len(up) + [inverse] * len(down)
        scale = variance_scale(gate + up + down, groups, scales)
        clock("repair")
    merged = merge_neurons(mlp, groups, factors=factors, scale=scale)
    clock("merge")
    return merged, _describe(found)


def _fold_attention(
    attention: Weights,
    shape: ModelShape,
    before: LayerShape,
    after: LayerShape,
    options: MergeOptions,
    clock: _Clock,
) -> tuple[dict[Role, Tensor], dict[str, Any]]:
    by_group = after.kv_heads < before.kv_heads
    units, width = (before.kv_heads, after.kv_heads) if by_group else (before.heads, after.heads)
    views = unit_views(attention, before, units)
    if options.align == "gauge" and by_group:
        aligner = PairwiseAligner(balance(head_groups(views, before, qk_norm=shape.architecture.qk_norm)))
        distances = aligner.distances()
        clock("align")
        found = cluster_distances(distances, width, method=options.cluster, seed=options.seed)
        groups = Groups(found.labels)
        views = aligned_views(views, groups, aligner, distances)
    else:
        found = cluster(unit_rows(views), width, method=options.cluster, seed=options.seed)
        groups = Groups(found.labels)
    clock("cluster")
    scale = variance_scale(unit_rows(views), groups) if options.repair == "variance" else None
    merged = merge_heads(attention, views, groups, scale=scale)
    clock("merge")
    return merged, _describe(found)
