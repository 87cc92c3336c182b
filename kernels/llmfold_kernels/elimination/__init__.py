"""Backward elimination on an inverse Gram: drop the unit that costs least after all others are refit."""

import torch
from torch import Tensor

from llmfold_kernels.dispatch import launching_on, on_triton
from llmfold_kernels.elimination import naive


def eliminate(inverse: Tensor, products: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Remove ``steps`` units, each the one of least K_ii / P_ii, equal ones to the lowest (Hassibi and Stork 1993).

    With p = P_i / √P_ii, k = K_i / √P_ii and κ = K_ii / P_ii, removing unit i makes P ← P − p pᵀ and
    K ← K − p kᵀ − k pᵀ + κ p pᵀ.

    Args:
        inverse: P, the inverse ridged Gram: n x n, float32 or float64. DESTROYED.
        products: K = W Wᵀ with W the refit P C: of the same shape and dtype. DESTROYED.
        steps: units to remove, from 0 to n - 1.

    Returns:
        units in the order they went (int64, steps) and their costs (steps), on the CPU.

    Raises:
        ValueError: matrices that do not fit, or steps outside 0..n-1.
    """
    n = len(inverse)
    if inverse.shape != (n, n) or products.shape != (n, n) or inverse.dtype != products.dtype:
        raise ValueError(f"expected two square matrices, got {tuple(inverse.shape)} and {tuple(products.shape)}")
    if not 0 <= steps < n:
        raise ValueError(f"steps must be from 0 to {n - 1}, got {steps}")
    wide = (torch.float32, torch.float64)
    if on_triton(inverse, products, dtypes=wide):
        from llmfold_kernels.elimination import kernel

        with launching_on(inverse):
            return kernel.eliminate(inverse.contiguous(), products.contiguous(), steps)
    return naive.eliminate(inverse, products, steps)
