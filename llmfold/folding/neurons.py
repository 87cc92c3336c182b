"""Merging the intermediate neurons of a gated MLP."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmfold.clustering import gram
from llmfold.clustering.gram import mirror
from llmfold.folding.grouping import Groups, merge_rows, scale_rows, squared_norms, work_dtype
from llmfold.models import Role
from llmfold.models.coupling import GATE, READER, VALUE

_TINY = 1e-30


def neuron_rows(weights: Mapping[Role, Tensor]) -> list[Tensor]:
    """Features of the n neurons as blocks, never concatenated: producers' rows, consumer's columns, biases."""
    scaling, values, columns = value_rows(weights)
    return [*scaling[:1], *values[:1], *columns, *scaling[1:], *values[1:]]


def value_rows(weights: Mapping[Role, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Blocks of the gate, of the value that it scales (each with its bias), and of the consumer's columns."""
    scaling, values = ([weights[role] for role in roles if role in weights] for roles in (GATE, VALUE))
    return _columns(scaling), _columns(values), [weights[READER].T]


def _columns(blocks: list[Tensor]) -> list[Tensor]:
    return [block if block.ndim > 1 else block[:, None] for block in blocks]


def gauge_distances(weights: Mapping[Role, Tensor]) -> Tensor:
    """Squared distances between neurons that do not see how scale and sign are split between value and consumer.

    A neuron adds ``silu(g·x) (u·x) D``, so (u, D) and (s u, D / s) are the same neuron for any s. Both are balanced to
    ‖u‖ = ‖D‖, and a pair is compared under the better of its two signs:
    ``‖g - g'‖² + min over ± of ‖(u, D) ∓ (u', D')‖²``. These are not distances between points of a space.

    Returns:
        (n, n) float32 (float64 for float64), symmetric, zero diagonal.
    """
    scaling, values, columns = value_rows(weights)
    scale = _balance(values, columns)
    products = gram(values).mul_(scale).mul_(scale[:, None])
    products += gram(columns).div_(scale).div_(scale[:, None])
    products = products.abs_().add_(gram(scaling))
    norms = products.diagonal().clone()
    products.mul_(-2).add_(norms).add_(norms[:, None]).clamp_(min=0)
    # Rounding has made the two halves differ.
    return mirror(products.fill_diagonal_(0))


def _balance(values: list[Tensor], columns: list[Tensor]) -> Tensor:
    """(n,) factor of the value's rows that balances ‖u‖ = ‖D‖; one for neurons that are dead on either side."""
    u_norm, d_norm = _norms(values), _norms(columns)
    alive = (u_norm > _TINY) & (d_norm > _TINY)
    return torch.where(alive, (d_norm / u_norm.clamp_min(_TINY)).sqrt(), torch.ones_like(u_norm))


def _norms(blocks: list[Tensor]) -> Tensor:
    return torch.stack([squared_norms(block) for block in blocks]).sum(0).sqrt()


def gauge_factors(weights: Mapping[Role, Tensor], groups: Groups) -> Tensor:
    """Factor s of every neuron that turns it to its cluster's gauge: the value's rows times s, the consumer's over s.

    Scales balance ‖u‖ = ‖D‖; the sign agrees with the cluster's strongest member.

    Returns:
        (n,) in the dtype of computation; one for neurons that stand alone.
    """
    _, values, columns = value_rows(weights)
    factors = _balance(values, columns)
    strength = (_norms(values) * _norms(columns)).cpu()
    merged = torch.zeros(len(strength), dtype=torch.bool)
    for group in groups.merged.tolist():
        members = groups.members(group)
        merged[members] = True
        reference = members[strength[members].argmax()]
        joint = factors[members] * factors[reference]
        agreement = _products(values, members, reference) * joint + _products(columns, members, reference) / joint
        factors[members] *= torch.where(agreement < 0, -1.0, 1.0).to(factors.dtype)
    return torch.where(merged.to(factors.device), factors, torch.ones_like(factors))


def _products(blocks: list[Tensor], members: Tensor, reference: Tensor) -> Tensor:
    """Inner products of a cluster's members with one of them."""
    dtype = work_dtype(blocks[0].dtype)
    return torch.stack([b[members].to(dtype) @ b[reference].to(dtype) for b in blocks]).sum(0)


def merge_neurons(
    weights: Mapping[Role, Tensor], groups: Groups, *, factors: Tensor | None = None, scale: Tensor | None = None
) -> dict[Role, Tensor]:
    """Merge each cluster of neurons into one: producers' rows averaged, the consumer's columns summed.

    Args:
        weights: the MLP's tensors by role.
        groups: partition of the n neurons into k.
        factors: (n,) change of gauge, see :func:`gauge_factors`.
        scale: (k,) factor of the value's merged rows, see :func:`llmfold.folding.variance.variance_scale`.

    Returns:
        The MLP's tensors of width k, same dtypes; a neuron that stands alone keeps its bits.
    """
    inverse = None if factors is None else 1 / factors
    merged = dict(weights)  # the consumer's bias stays
    for role in merged.keys() & set(GATE):
        merged[role] = merge_rows(weights[role], groups, mean=True)
    for role in merged.keys() & set(VALUE):
        rows = merge_rows(weights[role], groups, mean=True, scale=factors)
        merged[role] = rows if scale is None else scale_rows(rows, groups, scale)
    merged[READER] = merge_rows(weights[READER].T, groups, mean=False, scale=inverse).T.contiguous()
    return merged
