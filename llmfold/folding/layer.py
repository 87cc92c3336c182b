"""Folding one decoder layer: cluster its neurons and its heads, merge each cluster, repair what the merge changed."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llmfold.clustering import Clustering, Method, cluster_at
from llmfold.clustering.similarity import cluster_distances_at
from llmfold.folding.alignment import PairwiseAligner, balance
from llmfold.folding.grouping import Groups
from llmfold.folding.heads import aligned_views, head_groups, merge_heads, unit_rows, unit_views
from llmfold.folding.neurons import gauge_distances, gauge_factors, merge_neurons, neuron_rows, value_rows
from llmfold.folding.variance import variance_scale
from llmfold.models import ATTENTION_ROLES, MLP_ROLES, LayerShape, ModelShape, Role

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

    def turn_to(self, record: LayerRecord) -> None:
        """Count for another record from now on."""
        self._seconds, self._last = record.seconds, time.perf_counter()


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
    return next(fold_layer_at(weights, shape, before, [after], options))


def fold_layer_at(
    weights: Weights, shape: ModelShape, before: LayerShape, afters: Sequence[LayerShape], options: MergeOptions
) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
    """:func:`fold_layer` to several widths, bit for bit: clusters are found once for all and merged one by one."""
    records = [LayerRecord() for _ in afters]
    clock = _Clock(records[0])
    mlp = {role: weights[role] for role in MLP_ROLES if role in weights}
    attention = {role: weights[role] for role in ATTENTION_ROLES if role in weights}
    widths = sorted({after.intermediate for after in afters if after.intermediate < before.intermediate})
    neurons = dict(zip(widths, _cluster_neurons(mlp, widths, options, clock), strict=True)) if widths else {}
    units = _Units(attention, shape, before, options)
    heads = units.clusters(sorted({after.heads for after in afters if after.heads < before.heads}), clock)
    for after, record in zip(afters, records, strict=True):
        clock.turn_to(record)
        folded = dict(weights)
        if after.intermediate < before.intermediate:
            found = neurons[after.intermediate]
            folded.update(_merge_mlp(mlp, found, options, clock))
            record.mlp = _describe(found)
        if after.heads < before.heads:
            found = heads[after.heads]
            folded.update(units.merge(found, clock))
            record.attention = _describe(found)
        yield folded, record


def _describe(found: Clustering) -> dict[str, Any]:
    histogram = Groups(found.labels).histogram()
    return {
        "before": len(found.labels),
        "after": found.k,
        "cluster_sizes": {str(size): count for size, count in histogram.items()},
        "inertia": found.inertia,
        "inertia_bound": found.bound,
    }


def _cluster_neurons(mlp: Weights, widths: Sequence[int], options: MergeOptions, clock: _Clock) -> list[Clustering]:
    if options.align == "gauge":
        distances = gauge_distances(mlp)
        clock("gram")
        found = cluster_distances_at(distances, widths, method=options.cluster, seed=options.seed, overwrite=True)
        clock("cluster")
        return found
    return cluster_at(neuron_rows(mlp), widths, method=options.cluster, seed=options.seed, clock=clock)


def _merge_mlp(mlp: Weights, found: Clustering, options: MergeOptions, clock: _Clock) -> dict[Role, Tensor]:
    groups = Groups(found.labels)
    factors = gauge_factors(mlp, groups) if options.align == "gauge" else None
    scale = None
    if options.repair == "variance":
        gate, up, down = value_rows(mlp)
        inverse = None if factors is None else 1 / factors
        scales = [None] * len(gate) + [factors] * len(up) + [inverse] * len(down)
        scale = variance_scale(gate + up + down, groups, scales)
        clock("repair")
    merged = merge_neurons(mlp, groups, factors=factors, scale=scale)
    clock("merge")
    return merged


class _Units:
    """What is merged of a layer's attention: key/value groups with their query heads, or query heads under MQA."""

    def __init__(self, attention: Weights, shape: ModelShape, before: LayerShape, options: MergeOptions) -> None:
        self._attention, self._shape, self._before, self._options = attention, shape, before, options
        self._count = before.head_units
        self._views: dict[Role, Tensor] = {}
        self._aligned: tuple[PairwiseAligner, Tensor] | None = None

    def clusters(self, heads: Sequence[int], clock: _Clock) -> dict[int, Clustering]:
        """Clusters by the number of query heads that are left."""
        if not heads:
            return {}
        options, before = self._options, self._before
        self._views = unit_views(self._attention, before, self._count)
        widths = [h * self._count // before.heads for h in heads]
        if options.align == "gauge" and self._before.grouped:
            groups = head_groups(self._views, before, qk_norm=self._shape.architecture.qk_norm)
            aligner = PairwiseAligner(balance(groups))
            self._aligned = aligner, aligner.distances()
            clock("align")
            found = cluster_distances_at(self._aligned[1], widths, method=options.cluster, seed=options.seed)
            clock("cluster")
        else:
            rows = unit_rows(self._views)
            found = cluster_at(rows, widths, method=options.cluster, seed=options.seed, clock=clock)
        return dict(zip(heads, found, strict=True))

    def merge(self, found: Clustering, clock: _Clock) -> dict[Role, Tensor]:
        """Merge by one of the partitions."""
        groups = Groups(found.labels)
        views = self._views if self._aligned is None else aligned_views(self._views, groups, *self._aligned)
        scale = variance_scale(unit_rows(views), groups) if self._options.repair == "variance" else None
        merged = merge_heads(self._attention, views, groups, scale=scale)
        clock("merge")
        return merged
