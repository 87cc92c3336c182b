"""Clusters of units and the sums over them, in a fixed order on every device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BLOCK = 2**17


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype that sums are accumulated in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def squared_norms(rows: Tensor, chunk: int = 1024) -> Tensor:
    """(n,) squared norms of the rows of an (n, d) matrix, converted a chunk of rows at a time."""
    dtype = work_dtype(rows.dtype)
    return torch.cat([part.to(dtype).square().sum(1) for part in torch.split(rows, chunk)])


@dataclass(frozen=True)
class Groups:
    """A partition of n units into k groups, numbered by first occurrence.

    Attributes:
        labels: (n,) int64 on the CPU, every value in [0, k) occurs.
    """

    labels: Tensor

    @cached_property
    def sizes(self) -> Tensor:
        """(k,) members of each group."""
        return torch.bincount(self.labels)

    @cached_property
    def order(self) -> Tensor:
        """(n,) units sorted by group, within a group by index."""
        return torch.argsort(self.labels, stable=True)

    @cached_property
    def starts(self) -> Tensor:
        """(k,) position of each group's first member in ``order``."""
        return torch.cumsum(self.sizes, 0) - self.sizes

    @cached_property
    def first(self) -> Tensor:
        """(k,) lowest unit of each group."""
        return self.order[self.starts]

    @cached_property
    def merged(self) -> Tensor:
        """Groups of two members and more."""
        return torch.nonzero(self.sizes > 1).flatten()

    def members(self, group: int) -> Tensor:
        """Units of one group, ascending."""
        start = int(self.starts[group])
        return self.order[start : start + int(self.sizes[group])]

    def histogram(self) -> dict[int, int]:
        """Number of groups by size."""
        counts = torch.bincount(self.sizes)
        return {size: int(count) for size, count in enumerate(counts) if count}


def merge_rows(rows: Tensor, groups: Groups, *, mean: bool, scale: Tensor | None = None) -> Tensor:
    """Sum or average rows over groups; rows that stand alone are copied bit for bit.

    Members are added one rank at a time, so the order of additions is fixed and no atomics are used. The work area is
    half a megabyte, or one group.

    Args:
        rows: (n, …) any float dtype, possibly a strided view.
        groups: partition of the n rows.
        mean: divide each sum by the group's size.
        scale: (n,) factor applied to each row of a merged group first.

    Returns:
        (k, …) in the dtype of ``rows``, and lying in memory as they do; sums are accumulated in float32 (float64 for
        float64).
    """
    # Rows are taken as they lie in memory: gathering columns of a transposed matrix one by one is many times slower.
    order = sorted(range(rows.ndim), key=rows.stride().__getitem__, reverse=True)
    matrix, dim = rows.permute(order), order.index(0)
    k, first = len(groups.sizes), groups.first.to(rows.device)
    out = matrix.new_empty(*matrix.shape[:dim], k, *matrix.shape[dim + 1 :])
    step = max(1, _BLOCK // max(1, matrix[0].numel())) if dim else len(matrix)
    pieces = list(_pieces(groups, _BLOCK * len(rows) // max(1, matrix[:step].numel()), rows.device))
    for target, part in zip(torch.split(out, step), torch.split(matrix, step), strict=False):
        _take(part, dim, first, out=target)
        for piece in pieces:
            target.index_copy_(dim, piece.groups, _merged(part, dim, piece, mean, scale).to(rows.dtype))
    return out.permute([order.index(axis) for axis in range(rows.ndim)])


@dataclass(frozen=True)
class _Piece:
    """Some of the merged groups, their sizes, and their members rank by rank: places among these groups, and units."""

    groups: Tensor
    sizes: Tensor
    ranks: list[tuple[Tensor, Tensor]]


def _pieces(groups: Groups, size: int, device: torch.device) -> Iterator[_Piece]:
    """The merged groups, cut into pieces of ``size``; none where there are none."""
    for some in torch.split(groups.merged, max(1, size)) if len(groups.merged) else ():
        sizes, starts = groups.sizes[some], groups.starts[some]
        alive = [torch.nonzero(sizes > rank).flatten() for rank in range(int(sizes.max()))]
        ranks = [(a.to(device), groups.order[starts[a] + rank].to(device)) for rank, a in enumerate(alive)]
        yield _Piece(some.to(device), sizes.to(device), ranks)


def _take(rows: Tensor, dim: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """``index_select``; along the last dimension by ``gather``, which is twice as quick there."""
    if dim < rows.ndim - 1:
        return torch.index_select(rows, dim, index, out=out)
    return torch.gather(rows, dim, index.expand(*rows.shape[:-1], -1), out=out)


def _merged(rows: Tensor, dim: int, piece: _Piece, mean: bool, scale: Tensor | None) -> Tensor:
    """Sums or means along a dimension over the groups of a piece, in the dtype of computation."""
    total = rows.new_zeros(0)
    for rank, (places, units) in enumerate(piece.ranks):
        part = _take(rows, dim, units).to(work_dtype(rows.dtype))
        if scale is not None:
            part *= _along(scale.to(part.device, part.dtype)[units], part, dim)
        if rank == 0:
            total = part
        elif len(places) == len(piece.groups):
            total += part
        else:
            total.index_add_(dim, places, part)
    return total / _along(piece.sizes.to(total.dtype), total, dim) if mean else total


def scale_rows(rows: Tensor, groups: Groups, scale: Tensor) -> Tensor:
    """Multiply the rows of merged groups in place by their factor; rows that stood alone are left as they are."""
    index = groups.merged.to(rows.device)
    factor = scale[groups.merged].to(rows.device, work_dtype(rows.dtype))
    rows[index] = (rows[index].to(factor.dtype) * _along(factor, rows)).to(rows.dtype)
    return rows


def _along(values: Tensor, like: Tensor, dim: int = 0) -> Tensor:
    return values.view(*[1] * dim, -1, *[1] * (like.ndim - 1 - dim))
