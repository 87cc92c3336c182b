"""Coupled structures, the units of structured pruning: intermediate neurons, and key/value groups with their heads.

A neuron is its gate row, up row and down column. A group is a key/value head with its query heads: their q, k and v
rows and o columns; where all query heads share a single key/value head (MQA), a query head is a unit of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmfold.folding.heads import unit_views
from llmfold.methods.base import Weights
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import GATE, READER, VALUE

WEIGHT_ROLES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Units:
    """One value, or the kept indices, of the units of both parts of a layer: ``neurons`` and ``heads``, on the CPU."""

    neurons: Tensor
    heads: Tensor


def coupled_sums(entries: Weights, layer: LayerShape) -> Units:
    """Sum one value per weight over every coupled structure; biases are left out.

    Args:
        entries: a tensor of the weight's shape for every role of ``WEIGHT_ROLES``.
        layer: widths of the layer.

    Returns:
        float64 sums by neuron (n,) and by head unit (units,).
    """
    neurons = _sum(entries["gate"], 1) + _sum(entries["up"], 1) + _sum(entries["down"], 0)
    attention = {role: entries[role] for role in ("q", "k", "v", "o")}
    views = unit_views(attention, layer, layer.head_units)
    heads = torch.stack([_sum(view.flatten(1), 1) for view in views.values()]).sum(0)
    return Units(neurons.cpu(), heads.cpu())


def _sum(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim, dtype=torch.float64)


def top(scores: Tensor, keep: int) -> Tensor:
    """Indices of the ``keep`` largest scores, ascending; of equal scores the earlier unit stays."""
    return scores.argsort(descending=True, stable=True)[:keep].sort().values


def keep_units(weights: Weights, layer: LayerShape, kept: Units) -> dict[Role, Tensor]:
    """The layer's tensors with only the ``kept`` units, in the dtype they are stored in."""
    device = weights["gate"].device
    neurons, heads = kept.neurons.to(device), kept.heads.to(device)
    producers = [role for role in (*GATE, *VALUE) if role in weights]
    cut = {**weights, **{role: weights[role][neurons] for role in producers}, READER: weights[READER][:, neurons]}
    for role, view in unit_views(weights, layer, layer.head_units).items():
        rows = view[heads]
        cut[role] = rows.flatten(0, 2).T.contiguous() if role == "o" else rows.flatten(0, 1)
    return cut


def feature_mask(kept: Tensor, units: int, size: int) -> Tensor:
    """(units * size,) True at the features of units that are not ``kept``."""
    removed = torch.ones(units, dtype=torch.bool)
    removed[kept] = False
    return removed.repeat_interleave(size)
