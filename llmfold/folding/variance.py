"""Fold-AR: restore the variance that averaging loses (Wang et al., ICLR 2025, section 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmfold.folding.grouping import Groups, work_dtype


def mean_correlation(blocks: Sequence[Tensor], members: Tensor, scales: Sequence[Tensor | None]) -> float:
    """Mean cosine between the weights of a cluster's members, over all pairs of different members.

    Args:
        blocks: features of all units as (n, d_b) blocks.
        members: (m,) units, m at least two.
        scales: one (n,) factor per block, or None.
    """
    product = torch.zeros(len(members), len(members), dtype=torch.float64)
    for block, scale in zip(blocks, scales, strict=True):
        rows = block[members.to(block.device)].to(work_dtype(block.dtype))
        if scale is not None:
            rows = rows * scale[members].to(rows)[:, None]
        product += (rows @ rows.T).double().cpu()
    norms = product.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    cosines = product / norms / norms[:, None]
    m = len(members)
    return float((cosines.sum() - cosines.diagonal().sum()) / (m * (m - 1)))


def variance_scale(blocks: Sequence[Tensor], groups: Groups, scales: Sequence[Tensor | None] | None = None) -> Tensor:
    """Factor of each merged unit: ``sqrt(m / (1 + (m - 1) ρ))`` for m members of mean pairwise correlation ρ.

    The mean of m units of unit variance and mean correlation ρ has variance ``(1 + (m - 1) ρ) / m``; the factor
    restores it to one. Units that stand alone keep the factor one, and so do clusters whose members cancel.

    Args:
        blocks: features of all units as (n, d_b) blocks.
        groups: partition of the n units.
        scales: one (n,) factor per block, or None where the block is taken as it is.

    Returns:
        (k,) float32 on the CPU.
    """
    factor = torch.ones(len(groups.sizes))
    for group in groups.merged.tolist():
        members = groups.members(group)
        rho = mean_correlation(blocks, members, scales or [None] * len(blocks))
        remaining = 1 + (len(members) - 1) * rho
        if remaining > 1e-6:
            factor[group] = (len(members) / remaining) ** 0.5
    return factor
