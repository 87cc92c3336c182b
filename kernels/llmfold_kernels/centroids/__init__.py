"""Centroid update: sums or means of rows by label over sorted segments, the same bits in every run."""

from typing import NamedTuple

import torch
from torch import Tensor

from llmfold_kernels.centroids import naive
from llmfold_kernels.dispatch import launching_on, on_triton


class Segments(NamedTuple):
    """Rows sorted by label, members in row order.

    Attributes:
        order: (n,) row numbers by label.
        starts: (k,) first place of each label in ``order``.
        sizes: (k,) rows of each label, zero for one that does not occur.
        ranked: (k,) labels by falling size, equal ones ascending.
    """

    order: Tensor
    starts: Tensor
    sizes: Tensor
    ranked: Tensor


def segments(labels: Tensor, k: int) -> Segments:
    """Sort labels (n, integers in 0..k-1) into segments; all int32, on the device of the labels.

    Raises:
        ValueError: a label outside 0..k-1.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < k:
        raise ValueError(f"labels must lie in 0..{k - 1}, got {int(labels.min())}..{int(labels.max())}")
    sizes = torch.bincount(labels, minlength=k)
    return Segments(
        labels.argsort(stable=True).int(),
        (sizes.cumsum(0) - sizes).int(),
        sizes.int(),
        sizes.argsort(descending=True, stable=True).int(),
    )


def from_groups(groups: list[tuple[Tensor, Tensor]], k: int) -> Segments:
    """Make segments of groups (clusters: c, members: c x m), for clusters that need not share out all rows.

    Clusters in no group are empty. Members keep the order they are given in.
    """
    device = groups[0][0].device
    sizes = torch.zeros(k, dtype=torch.int64, device=device)
    starts = torch.zeros_like(sizes)
    taken = 0
    for clusters, members in groups:
        size = members.shape[1]
        sizes[clusters] = size
        starts[clusters] = taken + size * torch.arange(len(clusters), device=device)
        taken += members.numel()
    order = torch.cat([members.flatten() for _, members in groups])
    return Segments(order.int(), starts.int(), sizes.int(), sizes.argsort(descending=True, stable=True).int())


def segment_sums(rows: Tensor, parts: Segments, *, mean: bool = False) -> Tensor:
    """Sum rows within each segment, in row order, or average them.

    The columns of a symmetric matrix are its rows, so the same call sums Gram columns by cluster.

    Args:
        rows: n x w, bf16, fp16, fp32 (float64 on the twin), any strides.
        parts: of the n rows, from :func:`segments`.
        mean: divide by the segment's size.

    Returns:
        k x w, float32 (float64 for float64 rows); 0 where a segment is empty.
    """
    if on_triton(rows):
        from llmfold_kernels.centroids import kernel

        with launching_on(rows):
            return kernel.segment_sums(rows, *parts, mean=mean)
    return naive.segment_sums(rows, parts.order, parts.starts, parts.sizes, mean=mean)
