"""Nearest centroids in Triton, from rows and from a Gram matrix, without the matrix of all distances."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfold_kernels.centroids.kernel import added
from llmfold_kernels.dispatch import WIDE_MEMORY, blocks_of, shared_memory, splits_for, tiles
from llmfold_kernels.gram.kernel import row_norms

_NO_LABEL = 2**31 - 1


def config(dtype: torch.dtype, memory: int) -> dict[str, int]:
    """Tiles of rows, centroids and features, warps and stages by input dtype and a block's shared memory."""
    if dtype == torch.float32:
        return tiles(512, ROWS=64, CENTROIDS=64, DEPTH=32, num_warps=8, num_stages=3)
    if memory >= WIDE_MEMORY:
        return tiles(512, ROWS=256, CENTROIDS=128, DEPTH=64, num_warps=8, num_stages=3)
    return tiles(512, ROWS=128, CENTROIDS=128, DEPTH=64, num_warps=8, num_stages=3)


@triton.jit
def assign_rows_kernel(
    rows,
    centroids,
    norms,
    scores,
    labels,
    n,
    k,
    d,
    row_stride,
    column_stride,
    centroid_stride,
    feature_stride,
    per_split,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    best = tl.full([ROWS], float("inf"), tl.float32)
    label = tl.zeros([ROWS], tl.int32)
    depth = tl.arange(0, DEPTH)
    left = rows + row[:, None].to(tl.int64) * row_stride + depth[None, :].to(tl.int64) * column_stride
    for first in range(split * per_split, tl.minimum((split + 1) * per_split, k), CENTROIDS):
        centroid = first + tl.arange(0, CENTROIDS)
        right = (
            centroids + centroid[None, :].to(tl.int64) * centroid_stride + depth[:, None].to(tl.int64) * feature_stride
        )
        x_at = left
        total = tl.zeros([ROWS, CENTROIDS], tl.float32)
        for start in range(0, d, DEPTH):
            inside = start + depth < d
            x = tl.load(x_at, mask=(row < n)[:, None] & inside[None, :], other=0.0)
            c = tl.load(right, mask=(centroid < k)[None, :] & inside[:, None], other=0.0)
            total = tl.dot(x, c, total, input_precision="ieee")
            x_at += DEPTH * column_stride
            right += DEPTH * feature_stride
        score = tl.load(norms + centroid, mask=centroid < k, other=float("inf"))[None, :] - 2.0 * total
        nearest = tl.min(score, 1)
        here = tl.min(tl.where(score == nearest[:, None], centroid[None, :], 2147483647), 1)
        closer = nearest < best
        best, label = tl.where(closer, nearest, best), tl.where(closer, here, label)
    tl.store(scores + split.to(tl.int64) * n + row, best, mask=row < n)
    tl.store(labels + split.to(tl.int64) * n + row, label, mask=row < n)


@triton.jit
def nearest_centre_kernel(
    gram,
    order,
    starts,
    sizes,
    ranked,
    offset,
    scale,
    own,
    scores,
    labels,
    stays,
    n,
    k,
    stride,
    per_split,
    CENTRES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    mine = tl.load(own + column, mask=column < n, other=-1)
    best = tl.full([COLUMNS], float("inf"), tl.float32)
    label = tl.full([COLUMNS], 2147483647, tl.int32)
    for first in range(split * per_split, tl.minimum((split + 1) * per_split, k), CENTRES):
        rank = first + tl.arange(0, CENTRES)
        centre = tl.load(ranked + rank, mask=rank < k, other=0)
        size = tl.load(sizes + centre, mask=rank < k, other=0)
        start = tl.load(starts + centre, mask=rank < k, other=0)
        total = added(gram, order, start, size, column, n, stride, 1, CENTRES, COLUMNS)
        away = tl.load(offset + centre, mask=rank < k, other=float("inf"))
        factor = tl.load(scale + centre, mask=rank < k, other=0.0)
        score = away[:, None] - factor[:, None] * total
        # Of the centres of one program at most one is the column's own.
        is_own = (centre[:, None] == mine[None, :]) & (rank < k)[:, None]
        found = tl.max(is_own.to(tl.int32), 0) > 0
        kept = tl.sum(tl.where(is_own, score, 0.0), 0)
        tl.store(stays + column, kept, mask=found & (column < n))
        nearest = tl.min(score, 0)
        here = tl.min(tl.where(score == nearest[None, :], centre[:, None], 2147483647), 0)
        closer = (nearest < best) | ((nearest == best) & (here < label))
        best, label = tl.where(closer, nearest, best), tl.where(closer, here, label)
    tl.store(scores + split.to(tl.int64) * n + column, best, mask=column < n)
    tl.store(labels + split.to(tl.int64) * n + column, label, mask=column < n)


def _lowest(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest score over the splits, and among equal ones the lowest label."""
    best = scores.amin(0)
    return torch.where(scores == best, labels, _NO_LABEL).amin(0).long(), best


def assign_rows(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`llmfold_kernels.assign.naive.assign_rows`."""
    (n, d), k, device = rows.shape, len(centroids), rows.device
    shape = config(rows.dtype, shared_memory(device))
    programs, chunks = blocks_of(n, shape["ROWS"]), blocks_of(k, shape["CENTROIDS"])
    splits = splits_for(programs, chunks)
    scores = torch.empty(splits, n, device=device)
    labels = torch.empty(splits, n, dtype=torch.int32, device=device)
    assign_rows_kernel[(programs, splits)](
        rows,
        centroids,
        row_norms([centroids]),
        scores,
        labels,
        n,
        k,
        d,
        *rows.stride(),
        *centroids.stride(),
        blocks_of(chunks, splits) * shape["CENTROIDS"],
        **shape,
    )
    label, best = _lowest(scores, labels)
    return label, (best + row_norms([rows])).clamp_(min=0)


def nearest_centre(
    gram: Tensor,
    order: Tensor,
    starts: Tensor,
    sizes: Tensor,
    ranked: Tensor,
    offset: Tensor,
    scale: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`llmfold_kernels.assign.naive.nearest_centre`; ``ranked`` are the centres by size."""
    n, k, device = gram.shape[1], len(sizes), gram.device
    shape = tiles(256, CENTRES=8, COLUMNS=128, num_warps=4)
    programs, chunks = blocks_of(n, shape["COLUMNS"]), blocks_of(k, shape["CENTRES"])
    splits = min(chunks, 8 * splits_for(programs, chunks))
    scores = torch.empty(splits, n, device=device)
    found = torch.empty(splits, n, dtype=torch.int32, device=device)
    stays = torch.empty(n, device=device)
    nearest_centre_kernel[(programs, splits)](
        gram,
        order,
        starts,
        sizes,
        ranked,
        offset,
        scale,
        labels.int(),
        scores,
        found,
        stays,
        n,
        k,
        gram.stride(0),
        blocks_of(chunks, splits) * shape["CENTRES"],
        **shape,
    )
    label, best = _lowest(scores, found)
    return label, best, stays
