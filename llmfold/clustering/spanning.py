"""Minimum spanning tree on a device that does many rows at once."""

import torch
from torch import Tensor

from llmfold.clustering.blocks import spans

_ROWS = 1024


def _nearest_outside(distances: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (n) and number (n) of every row's nearest row in another component, equal ones to the lowest."""
    n = len(distances)
    weight, other = torch.empty_like(distances[0]), torch.empty_like(component)
    columns = torch.arange(n, device=distances.device)
    for rows in spans(n, _ROWS):
        part = distances[rows].masked_fill(component[rows, None] == component, torch.inf)
        weight[rows] = part.amin(1)
        other[rows] = torch.where(part == weight[rows, None], columns, n).amin(1)
    return weight, other


def spanning_edges(distances: Tensor) -> Tensor:
    """Return the n - 1 edges of the minimum spanning tree, ascending, by Borůvka's algorithm (1926).

    Every round reads the matrix once and at least halves the number of components. Equal edges are told apart by their
    lower and then their higher row, so no round closes a cycle.

    Args:
        distances: n x n symmetric, finite, any device.
    """
    n, device = len(distances), distances.device
    component = torch.arange(n, device=device)
    edges = [distances.new_empty(0)]
    while sum(map(len, edges)) < n - 1:
        weight, other = _nearest_outside(distances, component)
        rows = torch.arange(n, device=device)
        key = torch.minimum(rows, other) * n + torch.maximum(rows, other)
        least = torch.full_like(weight, torch.inf).scatter_reduce(0, component, weight, "amin")
        key = torch.where(weight == least[component], key, n * n)
        chosen = torch.full_like(key, n * n).scatter_reduce(0, component, key, "amin")
        roots = torch.unique(component)
        low, high = chosen[roots] // n, chosen[roots] % n
        edge = torch.unique(chosen[roots])
        edges.append(distances[edge // n, edge % n])
        parent = rows.clone()
        parent[roots] = torch.where(component[low] == roots, component[high], component[low])
        # Two components that chose each other: the lower one is their root.
        mutual = (parent[parent] == rows) & (rows < parent)
        parent[mutual] = rows[mutual]
        while not torch.equal(jumped := parent[parent], parent):
            parent = jumped
        component = parent[component]
    return torch.cat(edges).sort().values
