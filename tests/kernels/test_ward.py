from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold.clustering import ward
from llmfold_kernels import gram, merge_greedily
from llmfold_kernels.ward import naive

Draw = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (2, 1), (17, 17), (17, 1), pytest.param(129, 100, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_merges_as_by_definition_and_as_on_the_host(draw: Draw, n: int, k: int, weighted: bool) -> None:
    rows = draw(n, 20)
    weights = draw(n).abs() + 0.5 if weighted else torch.ones(n, device=rows.device)
    matrix = gram([rows], epilogue="costs", weights=weights).matrix
    expected, prices = naive.merge_greedily(matrix.cpu().clone(), weights.cpu().clone(), n - k)
    pairs, costs = merge_greedily(matrix, weights.clone(), n - k)
    assert torch.equal(pairs, expected)
    torch.testing.assert_close(costs, prices, rtol=1e-5, atol=1e-5)
    if not weighted:
        host = ward(gram([rows], epilogue="distances").matrix, k)
        assert torch.equal(pairs, host.pairs)
        torch.testing.assert_close(costs.double(), host.costs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_costs_that_are_or_become_infinite_are_refused(device: torch.device, bad: float) -> None:
    costs = torch.full((9, 9), bad, device=device).fill_diagonal_(0)
    with pytest.raises(ValueError, match="finite"):
        merge_greedily(costs, torch.ones(9, device=device), 6)


@pytest.mark.slow
def test_a_batch_merges_each_matrix_by_itself(draw: Draw) -> None:
    costs = torch.stack([gram([draw(33, 9, seed=seed)], epilogue="costs").matrix for seed in range(3)])
    ones = torch.ones(3, 33, device=costs.device)
    pairs, prices = merge_greedily(costs.clone(), ones.clone(), 12)
    assert pairs.shape == (3, 12, 2)
    for layer in range(3):
        alone = merge_greedily(costs[layer].clone(), ones[layer].clone(), 12)
        assert torch.equal(alone[0], pairs[layer])
        assert torch.equal(alone[1], prices[layer])


def test_ties_go_to_the_lowest_rows(device: torch.device) -> None:
    """All points of a regular simplex are equally far from each other, merged or not."""
    costs = torch.full((8, 8), 0.5, device=device).fill_diagonal_(0)
    pairs, prices = merge_greedily(costs, torch.ones(8, device=device), 3)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3]]
    assert prices.tolist() == [0.5, 0.5, 0.5]


def test_duplicates_merge_first_and_free(draw: Draw) -> None:
    rows = draw(12, 6).repeat_interleave(3, 0)
    costs = (torch.cdist(rows.double(), rows.double()).square() / 2).float()
    pairs, prices = merge_greedily(costs, torch.ones(36, device=rows.device), 24)
    assert {(a // 3, b // 3) for a, b in pairs.tolist()} == {(g, g) for g in range(12)}
    assert float(prices.max()) < 1e-6


def test_what_does_not_fit(device: torch.device) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        merge_greedily(torch.zeros(3, 4, device=device), torch.ones(3, device=device), 1)
    with pytest.raises(ValueError, match=r"0 to 2"):
        merge_greedily(torch.zeros(3, 3, device=device), torch.ones(3, device=device), 3)
