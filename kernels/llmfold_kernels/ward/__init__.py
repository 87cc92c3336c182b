"""Greedy Ward merging of one matrix of merge costs, or of a batch of them."""

import torch
from torch import Tensor

from llmfold_kernels.dispatch import launching_on, on_triton
from llmfold_kernels.ward import naive


def merge_greedily(costs: Tensor, weights: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Merge the cheapest pair of clusters ``merges`` times (Ward 1963, Lance and Williams 1967).

    Equal costs go to the lowest rows. On CUDA one launch does all merges of all matrices, one program for each.

    Args:
        costs: n x n symmetric, or L x n x n: w_a w_b / (w_a + w_b) times squared distances, float32. DESTROYED.
        weights: n (or L x n) positive masses, float32. DESTROYED.
        merges: from 0 to n - 1.

    Returns:
        pairs (merges x 2, int64: lowest rows of the clusters merged, the lower first) and costs (merges), both on the
        CPU, with a leading L for a batch.

    Raises:
        ValueError: shapes that do not fit, merges outside 0..n-1, or costs that are not finite or become infinite.
    """
    n = weights.shape[-1]
    if costs.shape != (*weights.shape, n) or costs.ndim not in (2, 3):
        raise ValueError(f"weights {tuple(weights.shape)} do not fit costs {tuple(costs.shape)}")
    if not 0 <= merges < n:
        raise ValueError(f"merges must be from 0 to {n - 1}, got {merges}")
    batch = (costs, weights) if costs.ndim == 3 else (costs[None], weights[None])
    if on_triton(*batch, dtypes=(torch.float32,)) and all(t.is_contiguous() for t in batch):
        from llmfold_kernels.ward import kernel

        with launching_on(costs):
            pairs, prices = kernel.merge_greedily(*batch, merges)
    else:
        found = [naive.merge_greedily(c, w, merges) for c, w in zip(*batch, strict=True)]
        pairs, prices = torch.stack([pair for pair, _ in found]), torch.stack([price for _, price in found])
    if not bool(prices.isfinite().all()):
        raise ValueError("merge costs must be finite, and far enough from the largest float32")
    return (pairs, prices) if costs.ndim == 3 else (pairs[0], prices[0])
