"""Gram matrix of block rows, and squared distances from it without the cancellation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llmfold.clustering.blocks import Blocks, column_chunks, row_count, spans, working_dtype
from llmfold.clustering.device import kernels_for

# Measured Gram error is at most 1e-6 of S_ii, so above this share of S_ii + S_jj a difference keeps about 4 digits.
_CANCELLATION = 1e-2
# One pair summed directly costs about as much as this many entries of a float64 matrix product.
_DIRECT_COST = 64
_DEPTH = 4096
_MIN_DEPTH = 512
_PANEL = 2**27
_TILE = 1024
_DEPTH_FLOAT64 = 1024
_PAIRS = 1024


@contextmanager
def _exact_bfloat16_products(blocks: Blocks) -> Iterator[None]:
    """Let oneDNN multiply float32 panels as bf16, with float32 sums: exact products where all inputs are bf16.

    Where a processor has no such arithmetic oneDNN multiplies in float32, on AMD's at twice the rate of torch's own
    float32 product.
    """
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    exact = all(block.dtype == torch.bfloat16 and block.device.type == "cpu" for block in blocks)
    if not exact or settings is None or not hasattr(settings, "fp32_precision"):
        yield
        return
    previous = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = previous


def _lower_gram(blocks: Blocks, tile: int) -> Tensor:
    """Gram whose entries above the diagonal blocks of ``tile`` rows are not set."""
    n, dtype = row_count(blocks), working_dtype(blocks)
    out = torch.empty(n, n, dtype=dtype, device=blocks[0].device)
    width = max(_MIN_DEPTH, min(_DEPTH, _PANEL // (n * dtype.itemsize)))
    with _exact_bfloat16_products(blocks):
        for index, chunk in enumerate(column_chunks(blocks, width)):
            panel = chunk.to(dtype)
            for rows in spans(n, tile):
                # beta = 0 takes nothing from memory that was never written.
                out[rows, : rows.stop].addmm_(panel[rows], panel[: rows.stop].T, beta=min(index, 1))
    return out


def mirror(matrix: Tensor) -> Tensor:
    """Copy what lies below the diagonal of a square matrix above it, in place."""
    parts = spans(len(matrix), _TILE)
    for index, rows in enumerate(parts):
        for columns in parts[:index]:
            # A transposed copy of a dense tile is several times faster than one between strided views.
            matrix[columns, rows] = matrix[rows, columns].contiguous().T.contiguous()
        part = matrix[rows, rows].tril()
        matrix[rows, rows] = part + part.tril(-1).T
    return matrix


def gram(blocks: Blocks, *, tile: int = 512, symmetric: bool = True) -> Tensor:
    """Return S = sum over blocks of X_b X_b^T.

    Only blocks of rows up to the diagonal are computed; features are summed in fixed chunks in a fixed order, which
    depend on n alone. The work area beside the result is one chunk of all rows, 128 MB (at least 512 columns). While
    bf16 inputs are multiplied on the CPU, the process-wide oneDNN matmul precision is bf16. On CUDA a Triton kernel
    does all of it, with no work area.

    Args:
        blocks: matrices n x d_b (bf16, fp16, fp32 or fp64; any strides), rows concatenated in thought.
        tile: rows per product.
        symmetric: fill what lies above the diagonal; without it only entries on and below the diagonal mean anything,
            which is all that :func:`squared_distances` reads.

    Returns:
        n x n, float32 (float64 if a block is), on the blocks' device.

    Raises:
        ValueError: unusable blocks, or rows that are not finite or whose squared norm overflows.
    """
    n, kernels = row_count(blocks), kernels_for(*blocks)
    if kernels is not None and n and len({block.dtype for block in blocks}) == 1:
        out: Tensor = kernels.gram(blocks).matrix
        finite_norms(out)
        return out
    out = _lower_gram(blocks, tile)
    finite_norms(out)
    return mirror(out) if symmetric else out


def finite_norms(gram: Tensor) -> Tensor:
    """Return a copy of the diagonal of a Gram matrix; ValueError unless it is square and its diagonal finite."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, got {tuple(gram.shape)}")
    norms = gram.diagonal().clone()
    if not bool(norms.isfinite().all()):
        raise ValueError("cannot cluster rows that hold NaN or infinite values, or whose squared norm overflows")
    return norms


def _select(chunk: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    return chunk.index_select(0, index).to(dtype)


def _direct(blocks: Blocks, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Squared distances of the row pairs (left, right), summed over the features themselves."""
    out = torch.zeros(len(left), dtype=dtype, device=left.device)
    for part in spans(len(left), _PAIRS):
        for chunk in column_chunks(blocks, _DEPTH):
            difference = _select(chunk, left[part], dtype) - _select(chunk, right[part], dtype)
            out[part] += difference.square_().sum(1)
    return out


def _dense(blocks: Blocks, left: Tensor, right: Tensor) -> Tensor:
    """All squared distances between two row sets, from a float64 Gram of centred rows."""
    out = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    scale = torch.zeros_like(out)
    for chunk in column_chunks(blocks, _DEPTH_FLOAT64):
        a, b = _select(chunk, left, torch.float64), _select(chunk, right, torch.float64)
        centre = a.mean(0)
        a, b = a.sub_(centre), b.sub_(centre)
        out.addmm_(a, b.T, alpha=-2)
        scale += a.square().sum(1)[:, None] + b.square().sum(1)
    out += scale
    # What is left of two equal rows is rounding: read it as zero.
    return out.masked_fill_(out < 32 * torch.finfo(torch.float64).eps * scale, 0.0)


def _recompute(blocks: Blocks, part: Tensor, close: Tensor, rows: slice, columns: slice) -> None:
    """Overwrite the entries of the tile ``part`` marked in ``close`` with distances taken from the rows."""
    left, right = close.any(1).nonzero().flatten(), close.any(0).nonzero().flatten()
    if int(close.sum()) * _DIRECT_COST > len(left) * len(right):
        exact = _dense(blocks, left + rows.start, right + columns.start).to(part.dtype)
        at = (left[:, None], right)
        part[at] = torch.where(close[at], exact, part[at])
    else:
        i, j = close.nonzero().unbind(1)
        part[i, j] = _direct(blocks, i + rows.start, j + columns.start, part.dtype)


def squared_distances(blocks: Blocks, gram: Tensor, *, tile: int | None = None) -> Tensor:
    """Turn ``gram`` IN PLACE into squared distances D_ij = S_ii + S_jj - 2 S_ij and return it.

    Where D_ij < 0.01 (S_ii + S_jj) the difference of Gram entries has lost digits: those pairs are summed from the rows
    or, where they are many in a tile, taken from a float64 Gram of the centred rows concerned (there a distance below
    7e-15 of the centred squared norms reads 0). No second n x n array is made.

    Args:
        blocks: the matrices n x d_b that ``gram`` was computed from.
        gram: n x n from :func:`gram`, read on and below the diagonal; destroyed.
        tile: rows and columns per tile; 1024 by default, and 4096 on CUDA, where a launch costs more than its entries.

    Returns:
        The same tensor: symmetric, nonnegative, zero diagonal.

    Raises:
        ValueError: blocks that do not fit the Gram, or a Gram that is not square or not finite.
    """
    if row_count(blocks) != len(gram):
        raise ValueError(f"blocks of {len(blocks[0])} rows do not fit a Gram matrix of {len(gram)}")
    norms = finite_norms(gram)
    parts = spans(len(gram), tile or (4096 if gram.is_cuda else _TILE))
    for index, rows in enumerate(parts):
        for columns in parts[: index + 1]:
            total = norms[rows, None] + norms[columns]
            part = total.sub(gram[rows, columns], alpha=2)
            close = part < total.mul_(_CANCELLATION)
            close = close.tril(-1) if rows == columns else close
            if bool(close.any()):
                _recompute(blocks, part, close, rows, columns)
            part.clamp_(min=0)
            if rows == columns:
                part = part.tril(-1)
                part = part + part.T
            gram[rows, columns] = part
            gram[columns, rows] = part.T.contiguous()
    return gram
