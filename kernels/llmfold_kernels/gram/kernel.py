"""Gram product of row features given as several blocks, in Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfold_kernels.dispatch import WIDE_MEMORY, blocks_of, shared_memory, splits_for, tiles
from llmfold_kernels.gram.naive import finish

EPILOGUES = {"products": 0, "distances": 1, "costs": 2}
GROUP = 8
# Below this many rows there are too few tiles for a device, so features are split among programs.
_SPLIT_ROWS = 1024


def config(dtype: torch.dtype, n: int, memory: int) -> dict[str, int]:
    """Tile, depth, warps and stages: tensor cores take 16-bit tiles, float32 runs on plain lanes.

    Args:
        dtype: of the inputs.
        n: rows.
        memory: shared memory of a block.
    """
    if dtype == torch.float32:
        return tiles(512, ROWS=64, COLUMNS=64, DEPTH=32, num_warps=8, num_stages=3)
    if n > _SPLIT_ROWS and memory >= WIDE_MEMORY:
        return tiles(512, ROWS=256, DEPTH=64, num_warps=8, num_stages=3) | tiles(256, COLUMNS=128)
    return tiles(512, ROWS=128, COLUMNS=128, DEPTH=64, num_warps=8, num_stages=3)


@triton.jit
def _triangle(index):
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row -= (row * (row + 1) // 2 > index).to(tl.int32)
    row += ((row + 1) * (row + 2) // 2 <= index).to(tl.int32)
    return row, index - row * (row + 1) // 2


@triton.jit
def row_norms_kernel(blocks, widths, row_strides, column_strides, norms, n, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for b in tl.static_range(len(blocks)):
        for start in range(0, widths[b], DEPTH):
            depth = start + tl.arange(0, DEPTH)
            inside = (rows < n)[:, None] & (depth < widths[b])[None, :]
            at = rows[:, None].to(tl.int64) * row_strides[b] + depth[None, :].to(tl.int64) * column_strides[b]
            x = tl.load(blocks[b] + at, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(x * x, 1)
    tl.store(norms + rows, total, mask=rows < n)


@triton.jit
def gram_kernel(
    blocks,
    widths,
    parts,
    row_strides,
    column_strides,
    out,
    norms,
    weights,
    n,
    EPILOGUE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Tiles go in groups that share rows and columns, so that a wave of programs reads from the cache.
    WIDE: tl.constexpr = GROUP * ROWS // COLUMNS
    big_row, big_column = _triangle(tl.program_id(0) // (GROUP * WIDE))
    inner = tl.program_id(0) % (GROUP * WIDE)
    first_row = (big_row * GROUP + inner // WIDE) * ROWS
    first_column = (big_column * WIDE + inner % WIDE) * COLUMNS
    if (first_column >= first_row + ROWS) | (first_row >= n):
        return
    rows, columns = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for b in tl.static_range(len(blocks)):
        first = split * parts[b]
        last = tl.minimum(first + parts[b], widths[b])
        depth = first + tl.arange(0, DEPTH)
        along = depth.to(tl.int64) * column_strides[b]
        left = blocks[b] + rows[:, None].to(tl.int64) * row_strides[b] + along[None, :]
        right = blocks[b] + columns[None, :].to(tl.int64) * row_strides[b] + along[:, None]
        for start in range(first, last, DEPTH):
            inside = start + tl.arange(0, DEPTH) < last
            x = tl.load(left, mask=(rows < n)[:, None] & inside[None, :], other=0.0)
            y = tl.load(right, mask=(columns < n)[None, :] & inside[:, None], other=0.0)
            total = tl.dot(x, y, total, input_precision="ieee")
            left += DEPTH * column_strides[b]
            right += DEPTH * column_strides[b]
    on_diagonal = rows[:, None] == columns[None, :]
    if EPILOGUE == 0:
        if first_column + COLUMNS > first_row:
            diagonal = tl.sum(tl.where(on_diagonal, total, 0.0), 1)
            here = (rows >= first_column) & (rows < first_column + COLUMNS) & (rows < n)
            tl.store(norms + split.to(tl.int64) * n + rows, diagonal, mask=here)
    else:
        of_rows = tl.load(norms + rows, mask=rows < n, other=0.0)
        of_columns = tl.load(norms + columns, mask=columns < n, other=0.0)
        total = tl.maximum(of_rows[:, None] + of_columns[None, :] - 2.0 * total, 0.0)
        total = tl.where(on_diagonal, 0.0, total)
    if EPILOGUE == 2:
        if WEIGHTED:
            heavy = tl.load(weights + rows, mask=rows < n, other=1.0)[:, None]
            other = tl.load(weights + columns, mask=columns < n, other=1.0)[None, :]
            total *= heavy * other / (heavy + other)
        else:
            total *= 0.5
    # A product of a tile with itself need not be symmetric to the last bit: only its lower half is taken.
    inside = (rows < n)[:, None] & (rows[:, None] >= columns[None, :])
    base = out + split.to(tl.int64) * n * n
    tl.store(base + rows[:, None].to(tl.int64) * n + columns[None, :], total, mask=inside)
    tl.store(
        base + columns[None, :].to(tl.int64) * n + rows[:, None],
        total,
        mask=inside & (rows[:, None] > columns[None, :]),
    )


def _geometry(blocks: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return (
        tuple(block.shape[1] for block in blocks),
        tuple(block.stride(0) for block in blocks),
        tuple(block.stride(1) for block in blocks),
    )


def row_norms(blocks: Sequence[Tensor]) -> Tensor:
    """See :func:`llmfold_kernels.gram.naive.row_norms`."""
    n = len(blocks[0])
    norms = torch.empty(n, device=blocks[0].device)
    widths, row_strides, column_strides = _geometry(blocks)
    shape = tiles(512, BLOCK=16, DEPTH=256)
    grid = (blocks_of(n, shape["BLOCK"]),)
    row_norms_kernel[grid](tuple(blocks), widths, row_strides, column_strides, norms, n, **shape)
    return norms


def gram(blocks: Sequence[Tensor], epilogue: str, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`llmfold_kernels.gram.naive.gram`."""
    blocks = tuple(blocks)
    n, device = len(blocks[0]), blocks[0].device
    shape = config(blocks[0].dtype, n, shared_memory(device))
    widths, row_strides, column_strides = _geometry(blocks)
    big = blocks_of(n, shape["ROWS"] * GROUP)
    programs = big * (big + 1) // 2 * GROUP**2 * (shape["ROWS"] // shape["COLUMNS"])
    steps = blocks_of(max(widths), shape["DEPTH"])
    used = blocks_of(n, shape["ROWS"])
    splits = splits_for(used * (used + 1) // 2, steps) if n <= _SPLIT_ROWS else 1
    parts = tuple(blocks_of(blocks_of(width, shape["DEPTH"]), splits) * shape["DEPTH"] for width in widths)
    fused = epilogue if splits == 1 else "products"
    out = torch.empty(splits, n, n, device=device)
    norms = row_norms(blocks) if fused != "products" else torch.empty(splits, n, device=device)
    gram_kernel[(programs, splits)](
        blocks,
        widths,
        parts,
        row_strides,
        column_strides,
        out,
        norms,
        norms if weights is None else weights.to(device, torch.float32).contiguous(),
        n,
        EPILOGUE=EPILOGUES[fused],
        WEIGHTED=weights is not None,
        GROUP=GROUP,
        **shape,
    )
    if splits == 1:
        return out[0], norms if fused != "products" else norms[0]
    total = norms.sum(0)
    return finish(out.sum(0), total, epilogue, weights), total
