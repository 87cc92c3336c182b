"""Backward elimination against a naive one that refits everything at every step."""

import pytest
import torch
from torch import Tensor

from llmfold.repair.least_squares import NormalEquations, accumulate
from llmfold.selection.elimination import eliminate_blocks, eliminate_units


def equations(features: int, seed: int = 0, targets: int = 6, rows: int = 500) -> NormalEquations:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator)
    a = torch.randn(rows, features, generator=generator) @ mix
    y = a @ torch.randn(features, targets, generator=generator) + torch.randn(rows, targets, generator=generator)
    return accumulate([(a, y, torch.rand(rows, generator=generator) + 0.1)])


def objective(system: NormalEquations, alive: Tensor, penalty: float, metric: Tensor | None = None) -> float:
    """Minimum of the ridge objective over the features that are left."""
    gram = system.gram[alive][:, alive] + penalty * torch.eye(len(alive), dtype=torch.float64)
    cross = system.cross[alive] if metric is None else system.cross[alive] @ metric
    return -float((cross * torch.linalg.solve(gram, cross)).sum())


def naive(system: NormalEquations, count: int, size: int, keep: int, ridge: float, metric: Tensor | None) -> list[int]:
    penalty, alive, gone = system.ridge(ridge), list(range(count)), []

    def features(blocks: list[int]) -> Tensor:
        return torch.tensor([b * size + i for b in blocks for i in range(size)])

    while len(alive) > keep:
        losses = {b: objective(system, features([o for o in alive if o != b]), penalty, metric) for b in alive}
        worst = min(alive, key=losses.__getitem__)
        alive.remove(worst)
        gone.append(worst)
    return gone


@pytest.mark.parametrize("with_metric", [False, True])
def test_units_go_in_the_naive_order(with_metric: bool) -> None:
    system = equations(30)
    metric = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) if with_metric else None
    found = eliminate_units(system, 8, 1e-3, metric=metric)
    assert found.removed.tolist() == naive(system, 30, 1, 8, 1e-3, metric)
    assert found.kept.tolist() == sorted(set(range(30)) - set(found.removed.tolist()))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_blocks_go_in_the_naive_order(size: int) -> None:
    system = equations(30, seed=1)
    found = eliminate_blocks(system, 2, size, 1e-3)
    assert found.removed.tolist() == naive(system, 30 // size, size, 2, 1e-3, None)


def test_costs_are_the_rise_of_the_objective() -> None:
    system = equations(24, seed=2)
    found = eliminate_units(system, 10, 1e-2)
    penalty = system.ridge(1e-2)
    rise = objective(system, found.kept, penalty) - objective(system, torch.arange(24), penalty)
    assert float(found.costs.sum()) == pytest.approx(rise, rel=1e-6)


def test_delayed_updates_agree_with_immediate_ones() -> None:
    """More removals than one block of delayed updates holds."""
    system = equations(200, seed=4, rows=3000)
    units, blocks = eliminate_units(system, 50, 1e-3), eliminate_blocks(system, 50, 1, 1e-3)
    assert torch.equal(units.removed, blocks.removed)
    torch.testing.assert_close(units.costs, blocks.costs, rtol=1e-5, atol=1e-8)


def test_a_prefix_of_the_order_is_the_order_of_a_milder_ratio() -> None:
    system = equations(40, seed=5)
    assert torch.equal(eliminate_units(system, 30, 1e-3).removed, eliminate_units(system, 10, 1e-3).removed[:10])


def test_dead_and_duplicated_units_go_first_and_cost_nothing() -> None:
    generator = torch.Generator().manual_seed(6)
    a = torch.randn(400, 10, generator=generator)
    a[:, 7] = 0
    a[:, 4] = a[:, 2]
    y = a @ torch.randn(10, 3, generator=generator)
    found = eliminate_units(accumulate([(a, y, torch.ones(400))]), 8, 1e-9)
    assert found.removed[0] == 7
    assert found.removed[1] in (2, 4)
    assert float(found.costs.sum()) < 1e-4 * float(y.square().sum())


def test_keeping_all_removes_none() -> None:
    assert len(eliminate_units(equations(12), 12, 1e-3).removed) == 0
    assert eliminate_blocks(equations(12), 4, 3, 1e-3).kept.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("keep", [0, 13])
def test_impossible_numbers_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        eliminate_units(equations(12), keep, 1e-3)
    with pytest.raises(ValueError, match="keep must be"):
        eliminate_blocks(equations(12), keep, 1, 1e-3)
