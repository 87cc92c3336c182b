"""Published ways to choose or blend channels by their weights alone, on the same couplings.

* structured magnitude, L1 or L2: the units whose producers weigh least go (Li et al., Pruning Filters, ICLR 2017);
* IFM: of all clusters the two whose means are closest merge, again and again (Chen et al., Going Beyond Neural
  Network Feature Similarity, ICLR 2024);
* INN: units in an order of little total variation are samples of a function, which is sampled at fewer points
  (Solodskikh et al., Integral Neural Networks, CVPR 2023), without the training that the authors add.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmfold.clustering import gram, squared_distances
from llmfold.folding.grouping import Groups
from llmfold.modules.coupling import ChannelCoupling, ChannelSlot
from llmfold.modules.narrow import Result, rewritten


def magnitude(coupling: ChannelCoupling, tensors: Mapping[str, Tensor], width: int, power: int) -> Tensor:
    """(width,) units whose producers' weights have the largest L1 (``power`` 1) or L2 (2) norm, ascending."""
    rows = [s.read(tensors[s.tensor]).flatten(1) for s in coupling.of_kind("producer") if s.tensor.endswith("weight")]
    norms = torch.stack([row.abs().pow(power).sum(1) for row in rows]).sum(0)
    return norms.argsort(descending=True, stable=True)[:width].sort().values


def closest_pairs(blocks: Sequence[Tensor], width: int) -> Groups:
    """Merge the two clusters with the closest means until ``width`` are left.

    Args:
        blocks: features of all units as (n, d_b) blocks.
        width: clusters to leave.
    """
    distances = squared_distances(blocks, gram(blocks)).double()
    distances.fill_diagonal_(torch.inf)
    sizes = torch.ones(len(distances), dtype=torch.float64)
    labels = torch.arange(len(distances))
    for _ in range(len(distances) - width):
        flat = int(distances.argmin())
        one, other = sorted((flat // len(distances), flat % len(distances)))
        share = sizes[one] / (sizes[one] + sizes[other])
        between = distances[one, other].clone()
        # The distance of a point to a weighted mean of two others (Lance and Williams, centroid linkage).
        to = share * distances[one] + (1 - share) * distances[other] - share * (1 - share) * between
        distances[one], distances[:, one] = to, to
        distances[other], distances[:, other] = torch.inf, torch.inf
        distances[one, one] = torch.inf
        sizes[one] += sizes[other]
        labels[labels == other] = one
    first = torch.unique(labels)  # a cluster is called by its lowest unit: ascending is by first occurrence
    return Groups(torch.searchsorted(first, labels))


def smooth_order(blocks: Sequence[Tensor]) -> Tensor:
    """(n,) units along a short path through their features: the nearest unit next, then pieces turned round."""
    lengths = squared_distances(blocks, gram(blocks)).sqrt()
    n = len(lengths)
    path, left = [int(lengths.sum(1).argmax())], set(range(n))
    left.remove(path[0])
    while left:
        path.append(min(left, key=lambda unit: float(lengths[path[-1], unit])))
        left.remove(path[-1])
    matrix: list[list[float]] = lengths.tolist()
    for _ in range(20):
        if not _turned(path, matrix):
            break
    return torch.tensor(path)


def _turned(path: list[int], lengths: list[list[float]]) -> bool:
    """Turn every piece of a path round that becomes shorter by it (2-opt), in place; whether any did."""
    changed = False
    for start in range(1, len(path) - 1):
        for stop in range(start + 1, len(path)):
            a, b, c = path[start - 1], path[start], path[stop]
            now, then = lengths[a][b], lengths[a][c]
            if stop + 1 < len(path):
                d = path[stop + 1]
                now, then = now + lengths[c][d], then + lengths[b][d]
            if then < now - 1e-9:
                path[start : stop + 1] = path[start : stop + 1][::-1]
                changed = True
    return changed


def resampling(units: int, width: int) -> Tensor:
    """(width, units) rows that read a function sampled at ``units`` even points at ``width`` of them, linearly."""
    at = torch.linspace(0, units - 1, width) if width > 1 else torch.tensor([(units - 1) / 2])
    low = at.floor().long().clamp_max(max(units - 2, 0))
    rows = torch.zeros(width, units)
    rows[torch.arange(width), low] = 1 - (at - low)
    if units > 1:
        rows[torch.arange(width), low + 1] = at - low
    return rows


def resampled(tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], widths: Sequence[int]) -> Result:
    """INN: producers read at fewer points of the path, consumers too, times n / k, so that their integral stays."""
    orders = [smooth_order(coupling.rows(tensors)) for coupling in couplings]

    def values(number: int, slot: ChannelSlot, rows: Tensor) -> Tensor:
        units, width = len(rows), widths[number]
        if units == width:
            return rows
        reads = torch.einsum("kn,n...->k...", resampling(units, width).to(rows), rows[orders[number]])
        return reads * (units / width) if slot.kind == "consumer" else reads

    return rewritten(tensors, couplings, [torch.arange(width) for width in widths], values)
