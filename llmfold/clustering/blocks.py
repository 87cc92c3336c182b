"""Row features given as several n x d_b blocks whose concatenation is never built."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Blocks = Sequence[Tensor]


def row_count(blocks: Blocks) -> int:
    """Return n, the common number of rows.

    Raises:
        ValueError: no block, or blocks that are not floating-point matrices with the same rows on one device.
    """
    if not blocks:
        raise ValueError("clustering needs at least one block of row features")
    first = blocks[0]
    for block in blocks:
        if block.ndim != 2 or not block.is_floating_point():
            raise ValueError(f"blocks must be floating-point matrices, got {block.dtype} {tuple(block.shape)}")
        if len(block) != len(first) or block.device != first.device:
            raise ValueError("blocks must have the same number of rows and the same device")
    return len(first)


def working_dtype(blocks: Blocks) -> torch.dtype:
    """Return float64 if any block is float64, else float32."""
    return torch.float64 if any(block.dtype == torch.float64 for block in blocks) else torch.float32


def spans(length: int, step: int) -> list[slice]:
    """Cut ``range(length)`` into slices of at most ``step``, in order."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def column_chunks(blocks: Blocks, width: int) -> Iterator[Tensor]:
    """Yield views of at most ``width`` columns, block after block: the fixed order of every sum over features."""
    for block in blocks:
        for columns in spans(block.shape[1], width):
            yield block[:, columns]
