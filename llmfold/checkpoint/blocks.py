"""Going through a tensor of any size in blocks of bounded memory."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 8 << 20


def blocks(tensor: Tensor, max_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
    """Yield the elements of ``tensor`` in row-major order as contiguous 1-D tensors of at most ``max_bytes``.

    Blocks of a contiguous tensor are views; another layout is copied one block at a time.
    """
    elements = max(1, max_bytes // tensor.element_size())
    if tensor.is_contiguous():
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), elements):
            yield flat[start : start + elements]
    elif tensor[0].numel() > elements:
        for row in tensor:
            yield from blocks(row, max_bytes)
    else:
        rows = max(1, elements // tensor[0].numel())
        for start in range(0, tensor.shape[0], rows):
            yield tensor[start : start + rows].reshape(-1).contiguous()


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a floating-point tensor holds neither NaN nor infinity, with a bounded work area."""
    # The smallest and largest element are NaN as soon as any element is.
    return all(bool(torch.isfinite(torch.stack(torch.aminmax(block))).all()) for block in blocks(tensor.detach()))


def sha256(tensor: Tensor) -> str:
    """Return the SHA-256 hex digest of the tensor's bytes in row-major order, with a bounded work area."""
    digest = hashlib.sha256()
    for block in blocks(tensor.detach()):
        digest.update(block.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
