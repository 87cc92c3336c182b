"""Labels of a partition: numbering, and grouping by cluster size for sums with a fixed order."""

from collections.abc import Iterator

import torch
from torch import Tensor


def numbered_by_first_occurrence(labels: Tensor) -> Tensor:
    """Rename labels (int64, n) so that new names appear in the order 0, 1, 2, ... along the rows."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    starts = torch.ones_like(labels, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    # Each row's name becomes the lowest row of its cluster, and then the rank of that row among such rows.
    lowest = torch.empty_like(labels)
    lowest[order] = order[starts][starts.cumsum(0) - 1]
    return (lowest == torch.arange(len(labels), device=labels.device)).cumsum(0)[lowest] - 1


def cluster_sizes(labels: Tensor, k: int) -> Tensor:
    """Return int64 sizes of the clusters 0..k-1, zero for the empty ones; ValueError for labels outside that range."""
    if int(labels.min()) < 0 or int(labels.max()) >= k:
        raise ValueError(f"labels must lie in 0..{k - 1}, got {int(labels.min())}..{int(labels.max())}")
    return torch.bincount(labels, minlength=k)


def groups_by_size(labels: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (clusters: c, members: c x m) for every cluster size m >= 1 that occurs, members in row order.

    At most sqrt(2n) sizes occur, so clusters of one size are handled together and every sum has a fixed order on any
    device.
    """
    sizes = cluster_sizes(labels, k)
    order = labels.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    for size in torch.bincount(sizes).nonzero().flatten().tolist():
        if size:
            clusters = (sizes == size).nonzero().flatten()
            yield clusters, order[starts[clusters, None] + torch.arange(size, device=labels.device)]


def cluster_sums(rows: Tensor, groups: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
    """Sum rows (n x w) within each cluster of :func:`groups_by_size`: k x w in the dtype of the rows, 0 where empty."""
    out = rows.new_zeros(k, rows.shape[1])
    for clusters, members in groups:
        picked = rows.index_select(0, members.flatten())
        out[clusters] = picked.view(*members.shape, -1).sum(1) if members.shape[1] > 1 else picked
    return out
