"""Coupled structures, the units of structured pruning: intermediate neurons, and key/value groups with their heads.

A neuron is its row of every producer and its column of the consumer; so is a group, a key/value head with its query
heads. Where all query heads share a single key/value head (MQA), a query head is a unit of its own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfold.folding.heads import joined, unit_views
from llmfold.methods.base import Weights
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import HeadCoupling, NeuronCoupling

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models


@dataclass(frozen=True)
class Units:
    """One value, or the kept indices, of the units of both parts of a layer: ``neurons`` and ``heads``, on the CPU."""

    neurons: Tensor
    heads: Tensor


@dataclass(frozen=True)
class Structures:
    """The two couplings of a plain layer, whose tensors have one role each."""

    neurons: NeuronCoupling
    heads: HeadCoupling

    @property
    def matrices(self) -> list[Role]:
        """Roles of all matrices."""
        return [*self.heads.matrices, *self.neurons.matrices]


def structures_of(shape: "StockShape", index: int) -> Structures:
    """Those of a layer of a plain model, see :attr:`llmfold.models.stock_shape.StockShape.is_plain`."""
    couplings = shape.couplings(shape.layers[index])
    (neurons,), heads = couplings.neurons, couplings.heads
    assert heads is not None
    return Structures(neurons, heads)


def coupled_sums(entries: Weights, structures: Structures, layer: LayerShape) -> Units:
    """Sum one value per weight over every coupled structure; biases are left out.

    Args:
        entries: a tensor of the weight's shape for every matrix of the structures, and of those alone.
        structures: of the layer.
        layer: widths of the layer.

    Returns:
        float64 sums by neuron (n,) and by head unit (units,).
    """
    mlp = structures.neurons
    neurons = torch.stack([_sum(entries[role], int(role != mlp.reader)) for role in mlp.matrices]).sum(0)
    views = unit_views(structures.heads, entries, layer, layer.head_units)
    heads = torch.stack([_sum(view.flatten(1), 1) for view in views.values()]).sum(0)
    return Units(neurons.cpu(), heads.cpu())


def _sum(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim, dtype=torch.float64)


def top(scores: Tensor, keep: int) -> Tensor:
    """Indices of the ``keep`` largest scores, ascending; of equal scores the earlier unit stays."""
    return scores.argsort(descending=True, stable=True)[:keep].sort().values


def keep_units(weights: Weights, structures: Structures, layer: LayerShape, kept: Units) -> dict[Role, Tensor]:
    """The layer's tensors with only the ``kept`` units, in the dtype they are stored in."""
    mlp, device = structures.neurons, weights[structures.neurons.reader].device
    neurons, heads = kept.neurons.to(device), kept.heads.to(device)
    cut = {**weights, mlp.reader: weights[mlp.reader][:, neurons]}
    cut |= {role: weights[role][neurons] for role in mlp.producers}
    for role, view in unit_views(structures.heads, weights, layer, layer.head_units).items():
        cut[role] = joined(structures.heads, role, view[heads])
    return cut


def feature_mask(kept: Tensor, units: int, size: int) -> Tensor:
    """(units * size,) True at the features of units that are not ``kept``."""
    removed = torch.ones(units, dtype=torch.bool)
    removed[kept] = False
    return removed.repeat_interleave(size)
