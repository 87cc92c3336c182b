"""Baselines: what is closest, smoothest or smallest."""

import torch
from torch import Tensor

from llmfold.folding.grouping import Groups
from llmfold.modules.baselines import closest_pairs, magnitude, resampling, smooth_order
from llmfold.modules.coupling import ChannelCoupling, ChannelSlot


def brute(rows: Tensor, width: int) -> Groups:
    """Means, recomputed at every step."""
    clusters = [[unit] for unit in range(len(rows))]
    while len(clusters) > width:
        means = torch.stack([rows[members].mean(0) for members in clusters])
        distances = torch.cdist(means, means).fill_diagonal_(torch.inf)
        one, other = sorted(divmod(int(distances.argmin()), len(means)))
        clusters[one] += clusters.pop(other)
    labels = torch.empty(len(rows), dtype=torch.int64)
    for number, members in enumerate(sorted(clusters, key=min)):
        labels[members] = number
    return Groups(labels)


def test_the_closest_means_merge() -> None:
    rows = torch.randn(14, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for width in (13, 9, 4, 1):
        assert torch.equal(closest_pairs([rows[:, :2], rows[:, 2:]], width).labels, brute(rows, width).labels)


def test_resampling_is_exact_for_functions_of_first_degree() -> None:
    assert torch.equal(resampling(6, 6), torch.eye(6))
    line = 3 + 0.5 * torch.arange(9.0)
    assert torch.allclose(resampling(9, 4) @ line, 3 + 0.5 * torch.linspace(0, 8, 4))
    assert torch.allclose(resampling(7, 1).sum(1), torch.ones(1))


def test_an_order_along_a_line_is_found_again() -> None:
    places = torch.randperm(20, generator=torch.Generator().manual_seed(0)).double()
    order = smooth_order([places[:, None]])
    steps = places[order].diff()
    assert bool((steps.abs() == 1).all())


def test_the_largest_producers_stay() -> None:
    slot = ChannelSlot("conv.weight", 0, torch.arange(4)[:, None], "producer")
    coupling = ChannelCoupling("conv", 4, (slot,))
    tensors = {"conv.weight": torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.1, 0.1], [0.0, 3.5]])}
    assert magnitude(coupling, tensors, 2, 1).tolist() == [1, 3]
    assert magnitude(coupling, tensors, 2, 2).tolist() == [0, 3]
