"""Ways to make a layer narrower, all judged in the same metric: output error after the consumer has been refit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmfold.architectures import LayerShape, ModelShape, Role
from llmfold.clustering.similarity import cluster_distances
from llmfold.clustering.ward import ward
from llmfold.folding.alignment import PairwiseAligner, balance
from llmfold.folding.grouping import Groups
from llmfold.folding.heads import aligned_views, head_groups, merge_heads, unit_views
from llmfold.repair.least_squares import NormalEquations
from llmfold.selection.elimination import eliminate_blocks, eliminate_units

Weights = Mapping[Role, Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way to narrow a layer.

    Attributes:
        name: for the report.
        tensors: producers of the units that are left (gate and up, or q, k and v), float32.
        units: features that stay as they were, so that their equations are already known; None if they are new.
        own: (k, d) the consumer's own columns for these units, what repair starts from; None if the units are new.
    """

    name: str
    tensors: dict[Role, Tensor] = field(default_factory=dict)
    units: Tensor | None = None
    own: Tensor | None = None


def neuron_candidates(
    weights: Weights, keep: int, equations: NormalEquations, ridge: float, metric: Tensor | None
) -> list[Candidate]:
    """Ways to keep ``keep`` of the neurons: backward elimination, and medoids of Ward clusters of activations."""
    n = len(weights["gate"])
    if keep == n:
        return [_keep_neurons("all", weights, torch.arange(n))]
    eliminated = eliminate_units(equations, keep, ridge, metric=metric).kept
    medoids = activation_medoids(equations.gram, weights["down"], keep)
    return [
        _keep_neurons("drop", weights, eliminated),
        _keep_neurons("medoids", weights, medoids),
    ]


def _keep_neurons(name: str, weights: Weights, units: Tensor) -> Candidate:
    index = units.to(weights["gate"].device)
    roles = [role for role in ("gate", "up", "gate_bias", "up_bias") if role in weights]
    return Candidate(name, {role: weights[role][index] for role in roles}, units, weights["down"].T[index])


def activation_medoids(gram: Tensor, down: Tensor, keep: int) -> Tensor:
    """Medoids of importance-weighted Ward clusters of the neurons' activations.

    A neuron's point is its activation over all rows times the norm of its down column, so merging costs what it changes
    in the output; the weight of a point is one.

    Args:
        gram: (n, n) Gram of the activations.
        down: (d, n) the down projection.
        keep: clusters.

    Returns:
        (keep,) neurons, ascending, on the CPU.
    """
    strength = down.norm(dim=0).to(gram)
    groups = Groups(ward(_activation_distances(gram, strength), keep, overwrite=True).labels(keep))
    medoids = groups.first.clone()
    for group in groups.merged.tolist():
        members = groups.members(group)
        some = members.to(gram.device)
        inside = _activation_distances(gram[some][:, some], strength[some])
        medoids[group] = members[int(inside.sum(1).argmin())]
    return medoids.sort().values


def _activation_distances(gram: Tensor, strength: Tensor) -> Tensor:
    """Squared distances of points whose Gram matrix is ``gram`` once they are scaled; two matrices are held at most."""
    products = (gram * strength).mul_(strength[:, None])
    norms = products.diagonal().clone()
    return (norms + norms[:, None]).sub_(products, alpha=2).clamp_(min=0).fill_diagonal_(0)


def head_candidates(
    weights: Weights,
    shape: ModelShape,
    before: LayerShape,
    after: LayerShape,
    equations: NormalEquations,
    ridge: float,
    metric: Tensor | None,
) -> list[Candidate]:
    """Ways to keep fewer heads: dropped KV groups (or query heads, under MQA), and merged aligned groups."""
    by_group = before.kv_heads > 1
    count, keep = (before.kv_heads, after.kv_heads) if by_group else (before.heads, after.heads)
    size = before.heads * shape.head_dim // count
    if keep == count:
        return [_keep_heads("all", weights, torch.arange(count), size, by_group, shape.head_dim)]
    kept = eliminate_blocks(equations, keep, size, ridge, metric=metric).kept
    dropped = _keep_heads("drop", weights, kept, size, by_group, shape.head_dim)
    if not by_group:
        return [dropped]
    return [dropped, _merged_groups(weights, shape, before, keep)]


def _rows(units: Tensor, size: int) -> Tensor:
    return (units[:, None] * size + torch.arange(size)).flatten()


def _keep_heads(
    name: str,
    weights: Weights,
    units: Tensor,
    size: int,
    by_group: bool,
    head_dim: int,
) -> Candidate:
    queries = _rows(units, size)
    picked = {"q": queries, "q_bias": queries}
    if by_group:
        keys = _rows(units, head_dim)
        picked.update(k=keys, v=keys, k_bias=keys, v_bias=keys)
    device = weights["q"].device
    tensors = {role: weights[role][rows.to(device)] for role, rows in picked.items() if role in weights}
    return Candidate(name, tensors, queries, weights["o"].T[queries.to(device)])


def _merged_groups(weights: Weights, shape: ModelShape, before: LayerShape, keep: int) -> Candidate:
    views = unit_views(weights, before, before.kv_heads)
    aligner = PairwiseAligner(balance(head_groups(views, before, qk_norm=shape.architecture.qk_norm)))
    distances = aligner.distances()
    groups = Groups(cluster_distances(distances, keep, method="ward").labels)
    attention = {role: weights[role] for role in (*views, "o")}
    merged = merge_heads(attention, aligned_views(views, groups, aligner, distances), groups)
    del merged["o"]
    return Candidate("merge", merged)
