"""FLAP's adaptive structure: one ranking of the units of all layers decides the width of each (arXiv 2312.11983).

The published AL-AM lets heads and neurons of all layers compete for the parameters that may stay. Where
``--mlp-ratio`` or ``--attention-ratio`` is given, each part keeps its own budget (AL-MM). Two differences from the
published code: what a head costs in neurons follows from the model's shape, where the code has LLaMA's 512 / 3 (cut
to 170), and the ranking is cut where the budget is met best, where the code drops one unit more.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmfold.methods.baselines.structures import Units
from llmfold.models import LayerShape, ModelShape
from llmfold.planning import snap, width_multiple


def standardised_scores(statistics: Mapping[str, Tensor], index: int, layer: LayerShape) -> Units:
    """Scores that compete across layers and parts: standardised within the layer, averaged over a head's features.

    Args:
        statistics: as of :data:`llmfold.methods.baselines.flap.pruner.Statistics`.
        index: of the layer.
        layer: its widths.
    """
    heads = _standardise(statistics[f"{index}.heads.metric"].square())
    neurons = _standardise(statistics[f"{index}.neurons.metric"])
    return Units(neurons, heads.view(layer.head_units, -1).mean(1))


def _standardise(values: Tensor) -> Tensor:
    if len(values) == 1:  # which has no spread
        return torch.zeros_like(values)
    return (values - values.mean()) / values.std().clamp_min(torch.finfo(values.dtype).tiny)


def adaptive_widths(
    shape: ModelShape, planned: Sequence[LayerShape], scores: Sequence[Units], *, pooled: bool, multiple_of: int | None
) -> tuple[LayerShape, ...]:
    """Widths of every layer when the units of all layers compete for the parameters that the plan leaves.

    Every layer keeps a unit of each part, whatever its scores.

    Args:
        shape: the dense model.
        planned: uniform widths that say how much may stay.
        scores: of every layer, comparable across layers (and parts, if ``pooled``).
        pooled: neurons and heads compete with one another (AL-AM), else each keep the plan's number (AL-MM).
        multiple_of: round MLP widths to multiples of this; the published method does not.
    """
    layers, count = shape.layers, len(shape.layers)
    head_costs = [_unit_parameters(shape, layer) for layer in layers]
    values = [s.neurons for s in scores] + [s.heads for s in scores]
    costs = [shape.neuron_parameters] * count + head_costs
    for_neurons = sum(shape.neuron_parameters * after.intermediate for after in planned)
    for_heads = sum(c * a.units_in(b) for c, a, b in zip(head_costs, layers, planned, strict=True))
    if pooled:
        kept = _kept(values, costs, for_neurons + for_heads)
    else:
        kept = _kept(values[:count], costs[:count], for_neurons) + _kept(values[count:], costs[count:], for_heads)
    return tuple(
        layer.with_units(_snapped(layer, max(1, n), multiple_of), max(1, h))
        for layer, n, h in zip(layers, kept[:count], kept[count:], strict=True)
    )


def _kept(values: list[Tensor], costs: list[int], budget: int) -> list[int]:
    """Units that stay in each of some blocks that compete: by their values, at a block's cost of a unit each."""
    each = torch.cat([torch.full(v.shape, float(c), dtype=v.dtype) for v, c in zip(values, costs, strict=True)])
    mask = best_within(torch.cat(values), each, budget)
    return [int(part.sum()) for part in torch.split(mask, [len(v) for v in values])]


def _snapped(layer: LayerShape, neurons: int, multiple_of: int | None) -> int:
    if multiple_of is None:
        return neurons
    return snap(layer.intermediate, neurons / layer.intermediate, width_multiple(layer.intermediate, multiple_of))


def best_within(values: Tensor, costs: Tensor, budget: float) -> Tensor:
    """Mask of the highest values whose costs together come nearest to ``budget``."""
    order = values.argsort(descending=True, stable=True)
    totals = torch.cat((costs.new_zeros(1), costs[order].cumsum(0)))
    count = int((totals - budget).abs().argmin())
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def _unit_parameters(shape: ModelShape, layer: LayerShape) -> int:
    """Parameters of one head unit."""
    if layer.head_units == 1:
        return 0
    one_less = layer.with_units(layer.intermediate, layer.head_units - 1)
    return shape.layer_parameters(layer) - shape.layer_parameters(one_less)
