"""Merging attention heads: whole key/value groups, or the query heads of a single group (MQA)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmfold.folding.alignment import HeadGroups, PairwiseAligner
from llmfold.folding.grouping import Groups, merge_rows, scale_rows, work_dtype
from llmfold.models import LayerShape, Role

GROUP_ROLES = ("q", "k", "v", "q_bias", "k_bias", "v_bias")


def unit_views(weights: Mapping[Role, Tensor], layer: LayerShape, units: int) -> dict[Role, Tensor]:
    """View the projections by unit, the unit first.

    A unit is a key/value group with its query heads; where ``units`` exceeds the KV heads (MQA) it is a query head, and
    k and v, which all units share, are left out.

    Returns:
        q, k, v (and their biases) as (units, rows, …), o as (units, heads per unit, head_dim, hidden).
    """
    shared = units != layer.kv_heads
    views = {}
    for role in GROUP_ROLES:
        if role in weights and not (shared and role[0] in "kv"):
            tensor = weights[role]
            views[role] = tensor.view(units, tensor.shape[0] // units, *tensor.shape[1:])
    o = weights["o"]
    views["o"] = o.T.reshape(units, layer.heads // units, -1, o.shape[0])
    return views


def unit_rows(views: Mapping[Role, Tensor]) -> list[Tensor]:
    """Features of the units as blocks of (units, d) for clustering: all their weights and biases."""
    return [view.reshape(view.shape[0], -1) for view in views.values()]


def head_groups(views: Mapping[Role, Tensor], layer: LayerShape, *, qk_norm: bool) -> HeadGroups:
    """The units of :func:`unit_views` as groups to align, biases appended as a column, in the dtype of computation."""

    def rows(role: Role) -> Tensor:
        weight = views[role].to(work_dtype(views[role].dtype))
        bias = views.get(role + "_bias")
        return weight if bias is None else torch.cat((weight, bias.to(weight.dtype)[..., None]), -1)

    q, o = rows("q"), views["o"].to(work_dtype(views["o"].dtype))
    q = q.view(q.shape[0], layer.group_size, -1, q.shape[-1])
    return HeadGroups(q, rows("k"), rows("v"), o.transpose(2, 3), qk_norm)


def merge_heads(
    weights: Mapping[Role, Tensor], views: Mapping[Role, Tensor], groups: Groups, *, scale: Tensor | None = None
) -> dict[Role, Tensor]:
    """Merge each cluster of units into one: q, k and v averaged, o summed.

    Args:
        weights: the attention's tensors by role.
        views: the same by unit, possibly aligned; see :func:`unit_views`.
        groups: partition of the units.
        scale: factor of each merged unit's values (outputs where the values are shared).

    Returns:
        The attention's tensors; a unit that stands alone keeps its bits.
    """
    merged = dict(weights)
    scaled = ("v", "v_bias") if "v" in views else ("o",)
    for role, view in views.items():
        rows = merge_rows(view, groups, mean=role != "o").to(weights[role].dtype)
        if scale is not None and role in scaled:
            rows = scale_rows(rows, groups, scale)
        merged[role] = rows.flatten(0, 2).T.contiguous() if role == "o" else rows.flatten(0, 1)
    return merged


def aligned_views(
    views: Mapping[Role, Tensor], groups: Groups, aligner: PairwiseAligner, distances: Tensor
) -> dict[Role, Tensor]:
    """Turn every member of a merged cluster onto the cluster's medoid; units that stand alone are left as they are.

    Args:
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
            _store(turned, unit, aligner.turn(unit, aligner.align(medoid, unit)))
    return turned


def _store(views: dict[Role, Tensor], unit: int, group: HeadGroups) -> None:
    """Write one turned group back into the views, splitting the bias column off again."""
    for role, rows in (("q", group.q[0].flatten(0, 1)), ("k", group.k[0]), ("v", group.v[0])):
        width = views[role].shape[-1]
        views[role][unit] = rows[..., :width]
        if role + "_bias" in views:
            views[role + "_bias"][unit] = rows[..., width]
    views["o"][unit] = group.o[0].transpose(1, 2)
