"""FLAP's adaptive structure: one ranking of the units of all layers decides the width of each (arXiv 2312.11983).

The published AL-AM lets heads and neurons of all layers compete for the parameters that may stay. Where
``--mlp-ratio`` or ``--attention-ratio`` is given, each part keeps its own budget (AL-MM). Two differences from the
published code: what a head costs in neurons follows from the model's shape, where the code has LLaMA's 512 / 3 (cut
to 170), and the ranking is cut where the budget is met best, where the code drops one unit more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfold.methods.baselines.structures import Units
from llmfold.models import LayerShape, ModelShape
from llmfold.planning import snap, width_multiple


def adaptive_widths(
    shape: ModelShape,
    planned: Sequence[LayerShape],
    scores: Sequence[Units],
    *,
    pooled: bool,
    multiple_of: int | None,
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
    layers = shape.layers
    neurons = _Pool(
        [s.neurons for s in scores],
        [shape.neuron_parameters] * len(layers),
        sum(shape.neuron_parameters * p.intermediate for p in planned),
    )
    unit_costs = [_unit_parameters(shape, layer) for layer in layers]
    heads = _Pool(
        [s.heads for s in scores],
        unit_costs,
        sum(c * b.units_in(p) for c, b, p in zip(unit_costs, layers, planned, strict=True)),
    )
    if pooled:
        kept = _Pool(neurons.values + heads.values, neurons.costs + heads.costs, neurons.budget + heads.budget).kept()
    else:
        kept = neurons.kept() + heads.kept()
    return tuple(
        layer.with_units(_snapped(layer, max(1, n), multiple_of), max(1, h))
        for layer, n, h in zip(layers, kept[: len(layers)], kept[len(layers) :], strict=True)
    )


@dataclass(frozen=True)
class _Pool:
    """Blocks of units that compete: their values, what a unit of each block costs, and what may stay in all."""

    values: list[Tensor]
    costs: list[int]
    budget: int

    def kept(self) -> list[int]:
        """Units that stay in each block."""
        costs = [torch.full(v.shape, float(c), dtype=v.dtype) for v, c in zip(self.values, self.costs, strict=True)]
        mask = best_within(torch.cat(self.values), torch.cat(costs), self.budget)
        return [int(part.sum()) for part in torch.split(mask, [len(v) for v in self.values])]


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
