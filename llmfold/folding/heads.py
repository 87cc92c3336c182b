"""Merging attention heads: whole key/value groups, or the query heads of a single group (MQA)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmfold.folding.alignment import HeadGroups, PairwiseAligner
from llmfold.folding.grouping import Groups, merge_rows, scale_rows, work_dtype
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import HEAD_VALUE, KEY, QUERY, HeadCoupling


def unit_views(
    heads: HeadCoupling, weights: Mapping[Role, Tensor], layer: LayerShape, units: int
) -> dict[Role, Tensor]:
    """View the projections by unit, the unit first.

    A unit is a key/value group with its query heads; where ``units`` exceeds the KV heads (MQA) it is a query head, and
    keys and values, which all units share, are left out.

    Returns:
        Producers among ``weights`` as (units, rows, …), the consumer as (units, heads per unit, head_dim, hidden).
    """
    shared = (*KEY, *HEAD_VALUE) if units != layer.kv_heads else ()
    views = {}
    for role in heads.producers:
        if role in weights and role not in shared:
            tensor = weights[role]
            views[role] = tensor.view(units, tensor.shape[0] // units, *tensor.shape[1:])
    reader = weights[heads.reader]
    views[heads.reader] = reader.T.reshape(units, layer.heads // units, -1, reader.shape[0])
    return views


def unit_rows(views: Mapping[Role, Tensor]) -> list[Tensor]:
    """Features of the units as blocks of (units, d) for clustering: all their weights and biases."""
    return [view.reshape(view.shape[0], -1) for view in views.values()]


def joined(heads: HeadCoupling, role: Role, rows: Tensor) -> Tensor:
    """What a role's tensor is when units (k, …) of its view are put together, as it is stored."""
    return rows.flatten(0, 2).T.contiguous() if role == heads.reader else rows.flatten(0, 1)


def head_groups(heads: HeadCoupling, views: Mapping[Role, Tensor], layer: LayerShape, *, qk_norm: bool) -> HeadGroups:
    """The units of :func:`unit_views` as groups to align, biases appended as a column, in the dtype of computation."""

    def rows(roles: tuple[Role, Role]) -> Tensor:
        weight, bias = views[roles[0]], views.get(roles[1])
        weight = weight.to(work_dtype(weight.dtype))
        return weight if bias is None else torch.cat((weight, bias.to(weight.dtype)[..., None]), -1)

    q, o = rows(QUERY), views[heads.reader].to(work_dtype(views[heads.reader].dtype))
    q = q.view(q.shape[0], layer.group_size, -1, q.shape[-1])
    return HeadGroups(q, rows(KEY), rows(HEAD_VALUE), o.transpose(2, 3), qk_norm)


def merge_heads(
    heads: HeadCoupling,
    weights: Mapping[Role, Tensor],
    views: Mapping[Role, Tensor],
    groups: Groups,
    *,
    scale: Tensor | None = None,
) -> dict[Role, Tensor]:
    """Merge each cluster of units into one: producers averaged, consumers summed.

    Args:
        heads: which roles they have.
        weights: the attention's tensors by role.
        views: the same by unit, possibly aligned; see :func:`unit_views`.
        groups: partition of the units.
        scale: factor of each merged unit's values (outputs where the values are shared).

    Returns:
        The attention's tensors; a unit that stands alone keeps its bits.
    """
    merged = dict(weights)
    scaled = HEAD_VALUE if views.keys() & set(HEAD_VALUE) else (heads.reader,)
    for role, view in views.items():
        rows = merge_rows(view, groups, mean=role != heads.reader).to(weights[role].dtype)
        if scale is not None and role in scaled:
            rows = scale_rows(rows, groups, scale)
        merged[role] = joined(heads, role, rows)
    return merged


def aligned_views(
    heads: HeadCoupling, views: Mapping[Role, Tensor], groups: Groups, aligner: PairwiseAligner, distances: Tensor
) -> dict[Role, Tensor]:
    """Turn every member of a merged cluster onto the cluster's medoid; units that stand alone are left as they are.

    Args:
        heads: which roles they have.
        views: units as of :func:`unit_views`.
        groups: partition of the units.
        aligner: holds the balanced units.
        distances: (G, G) aligned squared distances.

    Returns:
        Views in the dtype of computation where anything was turned.
    """
    if not len(groups.merged):
        return dict(views)
    turned = {role: view.to(work_dtype(view.dtype), copy=True) for role, view in views.items()}
    for group in groups.merged.tolist():
        members = groups.members(group)
        medoid = int(members[distances[members][:, members].sum(1).argmin()])
        for unit in members.tolist():
            _store(heads, turned, unit, aligner.turn(unit, aligner.align(medoid, unit)))
    return turned


def _store(heads: HeadCoupling, views: dict[Role, Tensor], unit: int, group: HeadGroups) -> None:
    """Write one turned group back into the views, splitting the bias column off again."""
    for (role, bias), rows in ((QUERY, group.q[0].flatten(0, 1)), (KEY, group.k[0]), (HEAD_VALUE, group.v[0])):
        width = views[role].shape[-1]
        views[role][unit] = rows[..., :width]
        if bias in views:
            views[bias][unit] = rows[..., width]
    views[heads.reader][unit] = group.o[0].transpose(1, 2)
