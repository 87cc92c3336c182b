"""Sums of rows by segment, in Triton: each program owns some segments, so no addition is atomic."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfold_kernels.dispatch import blocks_of, tiles


@triton.jit
def added(
    rows,
    order,
    start,
    size,
    columns,
    width,
    row_stride,
    column_stride,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """SEGMENTS x WIDTH: the rows of each segment, ``order[start : start + size]``, added one after the other."""
    total = tl.zeros([SEGMENTS, WIDTH], tl.float32)
    for member in range(0, tl.max(size, 0)):
        live = member < size
        row = tl.load(order + start + member, mask=live, other=0)
        at = row[:, None].to(tl.int64) * row_stride + columns[None, :].to(tl.int64) * column_stride
        total += tl.load(rows + at, mask=live[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit
def segment_sums_kernel(
    rows,
    order,
    starts,
    sizes,
    ranked,
    out,
    k,
    width,
    row_stride,
    column_stride,
    MEAN: tl.constexpr,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    rank = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    # Segments of one program are of like size, so few lanes idle until the longest is done.
    segment = tl.load(ranked + rank, mask=rank < k, other=0)
    size = tl.load(sizes + segment, mask=rank < k, other=0)
    start = tl.load(starts + segment, mask=rank < k, other=0)
    total = added(rows, order, start, size, columns, width, row_stride, column_stride, SEGMENTS, WIDTH)
    if MEAN:
        total /= tl.maximum(size, 1).to(tl.float32)[:, None]
    inside = (rank < k)[:, None] & (columns < width)[None, :]
    tl.store(out + segment[:, None].to(tl.int64) * width + columns[None, :], total, mask=inside)


def segment_sums(rows: Tensor, order: Tensor, starts: Tensor, sizes: Tensor, ranked: Tensor, *, mean: bool) -> Tensor:
    """See :func:`llmfold_kernels.centroids.naive.segment_sums`; ``ranked`` are the segments by size."""
    k, width = len(sizes), rows.shape[1]
    out = torch.empty(k, width, device=rows.device)
    shape = tiles(256, SEGMENTS=8, WIDTH=256, num_warps=4)
    grid = (blocks_of(k, shape["SEGMENTS"]), blocks_of(width, shape["WIDTH"]))
    segment_sums_kernel[grid](
        rows,
        order,
        starts,
        sizes,
        ranked,
        out,
        k,
        width,
        rows.stride(0),
        rows.stride(1),
        MEAN=mean,
        **shape,
    )
    return out
