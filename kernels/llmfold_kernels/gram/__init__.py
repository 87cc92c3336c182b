"""S = X Xᵀ of rows whose features lie in several blocks, with norms and, if wanted, distances or Ward's merge costs."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from llmfold_kernels.dispatch import launching_on, on_triton
from llmfold_kernels.gram import naive

Epilogue = Literal["products", "distances", "costs"]


class Gram(NamedTuple):
    """The matrix (n x n, float32, symmetric) and the squared norms of the rows (n, float32)."""

    matrix: Tensor
    norms: Tensor


def gram(blocks: Sequence[Tensor], *, epilogue: Epilogue = "products", weights: Tensor | None = None) -> Gram:
    """Multiply rows with rows, summed over blocks, with float32 sums in a fixed order.

    Only tiles on and below the diagonal are computed. Any number of features: programs walk along them, and where rows
    are few (1,024 and less) the features are split among programs in parts that depend on the shapes alone.

    Args:
        blocks: matrices n x d_b of one dtype (bf16, fp16, fp32) and device, any strides; never concatenated.
        epilogue: "products" S_ij; "distances" max(S_ii + S_jj - 2 S_ij, 0); "costs" w_i w_j / (w_i + w_j) times that.
        weights: n positive masses for "costs"; 1 each when left out.

    Raises:
        ValueError: an unknown epilogue, no blocks, or blocks of different rows, dtypes or devices.
    """
    if epilogue not in ("products", "distances", "costs"):
        raise ValueError(f"epilogue must be products, distances or costs, got {epilogue!r}")
    kinds = {(block.ndim, len(block), block.dtype, block.device) for block in blocks}
    if len(kinds) != 1 or blocks[0].ndim != 2:
        raise ValueError("blocks must be matrices with the same rows, dtype and device")
    if on_triton(*blocks):
        from llmfold_kernels.gram import kernel

        with launching_on(blocks[0]):
            return Gram(*kernel.gram(blocks, epilogue, weights))
    return Gram(*naive.gram(blocks, epilogue, weights))
