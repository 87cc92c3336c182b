"""What the Gram kernel computes, in torch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def row_norms(blocks: Sequence[Tensor]) -> Tensor:
    """Return sum over blocks of squared rows: float32, n."""
    return torch.stack([block.float().square().sum(1) for block in blocks]).sum(0)


def finish(products: Tensor, norms: Tensor, epilogue: str, weights: Tensor | None) -> Tensor:
    """Turn products (n x n) into squared distances or Ward's merge costs, symmetric with a zero diagonal."""
    if epilogue == "products":
        return products
    distances = (norms[:, None] + norms - 2 * products).clamp_(min=0).fill_diagonal_(0)
    if epilogue == "distances":
        return distances
    masses = torch.ones_like(norms) if weights is None else weights.to(norms)
    return distances * (masses[:, None] * masses / (masses[:, None] + masses))


def gram(blocks: Sequence[Tensor], epilogue: str, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the matrix (n x n, float32) and the row norms (n, float32)."""
    n = len(blocks[0])
    products = torch.zeros(n, n, device=blocks[0].device)
    for block in blocks:
        products += block.float() @ block.float().T
    products = products.tril() + products.tril(-1).T
    return finish(products, norms := products.diagonal().clone(), epilogue, weights), norms
