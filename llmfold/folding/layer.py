"""Folding one decoder layer: cluster its neurons and its heads, merge each cluster, repair what the merge changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmfold.clustering import Clustering, Method, cluster_at
from llmfold.clustering.similarity import cluster_distances
from llmfold.folding.alignment import PairwiseAligner, balance
from llmfold.folding.grouping import Groups
from llmfold.folding.heads import aligned_views, head_groups, merge_heads, unit_rows, unit_views
from llmfold.folding.neurons import gauge_distances, gauge_factors, merge_neurons, neuron_rows, value_rows
from llmfold.folding.variance import variance_scale
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import HeadCoupling
from llmfold.models.slots import Slots, narrowed
from llmfold.runtime.timing import StageTimer

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models

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
    """What happened in one layer, or a piece of it, for the report: clusters of both parts, and seconds by stage."""

    mlp: dict[str, Any] | None = None
    attention: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def add_mlp(self, record: dict[str, Any]) -> None:
        """Add what happened to more couplings of neurons: of several, means, and how many they are."""
        if self.mlp is None:
            self.mlp = dict(record)
            return
        count, more = (each.get("couplings", 1) for each in (self.mlp, record))
        for key, value in record.items():
            if isinstance(value, float) and isinstance(self.mlp.get(key), float):
                self.mlp[key] += (value - self.mlp[key]) * more / (count + more)
        self.mlp["couplings"] = count + more

    def add(self, piece: "LayerRecord") -> None:
        """Add what happened in one more piece of the layer."""
        if piece.mlp is not None:
            self.add_mlp(piece.mlp)
        if piece.attention is not None:
            self.attention = piece.attention
        for stage, seconds in piece.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def fold_layer(
    weights: Weights,
    shape: "StockShape",
    before: LayerShape,
    target_shapes: Sequence[LayerShape],
    options: MergeOptions,
) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
    """Fold a decoder layer by the weights alone from widths ``before`` to each of ``target_shapes``.

    Clusters are found once for all targets and merged one by one; a fold does not depend on the other targets.

    Args:
        weights: all tensors of the layer by role, in their stored dtype.
        shape: the model's shape (biases, query/key norms).
        before: widths of the layer as it is.
        target_shapes: widths it shall have, one or more.
        options: clustering, alignment, repair and seed.

    Yields:
        For every target the folded tensors in their stored dtype, and the record. A part whose width stays keeps its
        bits.
    """
    records = [LayerRecord() for _ in target_shapes]
    timer = StageTimer(records[0].seconds)
    couplings = shape.couplings(before)
    widths = sorted({target.intermediate for target in target_shapes if target.intermediate < before.intermediate})
    targets = {width: next(t for t in target_shapes if t.intermediate == width) for width in widths}
    neurons: list[dict[int, Clustering]] = []
    for coupling in couplings.neurons if widths else ():
        units = [shape.units(coupling, targets[width]) for width in widths]
        mlp = coupling.view(weights, before)
        neurons.append(dict(zip(widths, _cluster_neurons(mlp, units, options, timer), strict=True)))
    heads = _Units(couplings.heads, weights, shape, before, options)
    fewer = heads.clusters(sorted({target.heads for target in target_shapes if target.heads < before.heads}), timer)
    for target, record in zip(target_shapes, records, strict=True):
        timer = StageTimer(record.seconds)
        parts: list[tuple[Slots, dict[Role, Tensor]]] = []
        if target.intermediate < before.intermediate:
            for coupling, clusterings in zip(couplings.neurons, neurons, strict=True):
                clustering = clusterings[target.intermediate]
                merged = _merge_mlp(coupling.view(weights, before), clustering, options, timer)
                parts.append((coupling.slots, merged))
                record.add_mlp(_describe(clustering))
        if target.heads < before.heads and couplings.heads is not None:
            parts.append((couplings.heads.slots, heads.merge(fewer[target.heads], timer)))
            record.attention = _describe(fewer[target.heads])
        yield narrowed(weights, parts, dict(shape.layer_roles(target)), target), record


def _describe(clustering: Clustering) -> dict[str, Any]:
    return {
        "before": len(clustering.labels),
        "after": clustering.k,
        "cluster_sizes": {str(size): count for size, count in Groups(clustering.labels).histogram().items()},
        "inertia": clustering.inertia,
        "inertia_bound": clustering.bound,
    }


def _cluster_neurons(mlp: Weights, widths: Sequence[int], options: MergeOptions, timer: StageTimer) -> list[Clustering]:
    if options.align == "gauge":
        distances = gauge_distances(mlp)
        timer.lap("gram")
        clusterings = cluster_distances(distances, widths, method=options.cluster, seed=options.seed, overwrite=True)
        timer.lap("cluster")
        return clusterings
    return cluster_at(neuron_rows(mlp), widths, method=options.cluster, seed=options.seed, notify=timer.lap)


def _merge_mlp(mlp: Weights, clustering: Clustering, options: MergeOptions, timer: StageTimer) -> dict[Role, Tensor]:
    groups = Groups(clustering.labels)
    factors = gauge_factors(mlp, groups) if options.align == "gauge" else None
    scale = None
    if options.repair == "variance":
        scaling, values, columns = value_rows(mlp)
        inverse = None if factors is None else 1 / factors
        scales = [None] * len(scaling) + [factors] * len(values) + [inverse] * len(columns)
        scale = variance_scale(scaling + values + columns, groups, scales)
        timer.lap("repair")
    merged = merge_neurons(mlp, groups, factors=factors, scale=scale)
    timer.lap("merge")
    return merged


class _Units:
    """What is merged of a layer's attention: key/value groups with their query heads, or query heads under MQA."""

    def __init__(
        self,
        heads: HeadCoupling | None,
        weights: Weights,
        shape: "StockShape",
        before: LayerShape,
        options: MergeOptions,
    ) -> None:
        self._heads = heads
        self._attention = {} if heads is None else heads.view(weights, before)
        self._shape, self._before, self._options = shape, before, options
        self._count = before.head_units
        self._views: dict[Role, Tensor] = {}
        self._aligned: tuple[PairwiseAligner, Tensor] | None = None

    def clusters(self, heads: Sequence[int], timer: StageTimer) -> dict[int, Clustering]:
        """Clusters by the number of query heads that are left; none where no heads are at hand."""
        if not heads or self._heads is None:
            return {}
        options, before = self._options, self._before
        self._views = unit_views(self._heads, self._attention, before, self._count)
        widths = [h * self._count // before.heads for h in heads]
        if options.align == "gauge" and self._before.grouped:
            groups = head_groups(self._heads, self._views, before, qk_norm=self._shape.architecture.qk_norm)
            aligner = PairwiseAligner(balance(groups))
            self._aligned = aligner, aligner.distances()
            timer.lap("align")
            clusterings = cluster_distances(self._aligned[1], widths, method=options.cluster, seed=options.seed)
            timer.lap("cluster")
        else:
            rows = unit_rows(self._views)
            clusterings = cluster_at(rows, widths, method=options.cluster, seed=options.seed, notify=timer.lap)
        return dict(zip(heads, clusterings, strict=True))

    def merge(self, clustering: Clustering, timer: StageTimer) -> dict[Role, Tensor]:
        """Merge by one of the partitions."""
        assert self._heads is not None
        groups, views = Groups(clustering.labels), self._views
        if self._aligned is not None:
            views = aligned_views(self._heads, views, groups, *self._aligned)
        scale = variance_scale(unit_rows(views), groups) if self._options.repair == "variance" else None
        merged = merge_heads(self._heads, self._attention, views, groups, scale=scale)
        timer.lap("merge")
        return merged
