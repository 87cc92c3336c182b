"""Clusters of units and the sums over them, in a fixed order on every device."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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

    Members are added one rank at a time, so the order of additions is fixed and no atomics are used.

    Args:
        rows: (n, …) any float dtype, possibly a strided view.
        groups: partition of the n rows.
        mean: divide each sum by the group's size.
        scale: (n,) factor applied to each row of a merged group first.

    Returns:
        (k, …) in the dtype of ``rows``; sums are accumulated in float32 (float64 for float64).
    """
    out = rows.index_select(0, groups.first.to(rows.device))
    if not len(groups.merged):
        return out
    sizes = groups.sizes[groups.merged]
    total: Tensor | None = None
    for rank in range(int(sizes.max())):
        alive = torch.nonzero(sizes > rank).flatten()
        units = groups.order[groups.starts[groups.merged[alive]] + rank].to(rows.device)
        part = rows.index_select(0, units).to(work_dtype(rows.dtype))
        if scale is not None:
            part *= _column(scale.to(part.device, part.dtype)[units], part)
        if total is None:
            total = part
        else:
            total[alive.to(rows.device)] += part
    assert total is not None
    if mean:
        total /= _column(sizes.to(total.device, total.dtype), total)
    out[groups.merged.to(out.device)] = total.to(out.dtype)
    return out


def scale_rows(rows: Tensor, groups: Groups, scale: Tensor) -> Tensor:
    """Multiply the rows of merged groups in place by their factor; rows that stood alone are left as they are."""
    index = groups.merged.to(rows.device)
    factor = scale[groups.merged].to(rows.device, work_dtype(rows.dtype))
    rows[index] = (rows[index].to(factor.dtype) * _column(factor, rows)).to(rows.dtype)
    return rows


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
