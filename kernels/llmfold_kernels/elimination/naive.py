"""What the elimination kernel computes, in torch: rank-one downdates after every step."""

import torch
from torch import Tensor


def eliminate(inverse: Tensor, products: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the units removed (int64, steps) and their costs (steps), on the CPU; both matrices are destroyed."""
    alive = torch.ones(len(inverse), dtype=torch.bool, device=inverse.device)
    removed, costs = [], []
    for _ in range(steps):
        cost = torch.where(alive, products.diagonal() / inverse.diagonal(), torch.inf)
        unit = int(cost.argmin())
        removed.append(unit)
        costs.append(cost[unit])
        alive[unit] = False
        pivot = inverse[unit, unit].clamp(min=torch.finfo(inverse.dtype).tiny)
        p, k = inverse[unit] / pivot.sqrt(), products[unit] / pivot.sqrt()
        kappa = products[unit, unit] / pivot
        inverse.sub_(torch.outer(p, p))
        products.sub_(torch.outer(p, k) + torch.outer(k, p) - kappa * torch.outer(p, p))
    stacked = torch.stack(costs).cpu() if costs else inverse.new_empty(0).cpu()
    return torch.tensor(removed, dtype=torch.int64), stacked
