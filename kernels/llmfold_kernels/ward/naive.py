"""What the Ward kernel computes, in torch: greedy merging by the Lance-Williams recurrence."""

import torch
from torch import Tensor


def merge_greedily(costs: Tensor, weights: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Return pairs (merges x 2, int64, lower row first) and costs (merges); ``costs`` and ``weights`` are destroyed.

    Every merge searches the whole matrix, O(n²): this is the definition and not a way to cluster.
    """
    n = len(costs)
    costs.masked_fill_(torch.ones_like(costs, dtype=torch.bool).tril(), torch.inf)
    pairs, prices = [], []
    for _ in range(merges):
        place = int(costs.argmin())
        a, b = divmod(place, n)
        price = costs[a, b].clone()
        full = torch.minimum(costs, costs.T)
        union = weights[a] + weights[b]
        merged = (weights + weights[a]) * full[a] + (weights + weights[b]) * full[b] - weights * price
        merged /= weights + union
        weights[a] = union
        costs[b], costs[:, b] = torch.inf, torch.inf
        merged[b] = torch.inf
        gone = torch.isinf(full[a])
        merged[gone] = torch.inf
        costs[a, a + 1 :] = merged[a + 1 :]
        costs[:a, a] = merged[:a]
        pairs.append((a, b))
        prices.append(price)
    empty = costs.new_empty(0)
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2), torch.stack(prices).cpu() if prices else empty.cpu()
