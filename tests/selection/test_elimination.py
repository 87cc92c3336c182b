"""Backward elimination against a naive one that refits everything at every step."""

import pytest
import torch
from torch import Tensor

from llmfold.repair import least_squares
from llmfold.repair.least_squares import ActivationSums, activation_sums, refit
from llmfold.selection.elimination import downdate_in_blocks, eliminate_blocks, eliminate_units


def problem(units: int, seed: int = 0, targets: int = 6, rows: int = 500) -> tuple[ActivationSums, Tensor]:
    """Sums over activations that depend on one another, and consumer rows."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, units, generator=generator) @ torch.randn(units, units, generator=generator)
    weights = torch.rand(rows, generator=generator) + 0.1
    return activation_sums([(a, weights)]), torch.randn(units, targets, generator=generator)


def objective(
    sums: ActivationSums, consumer: Tensor, alive: Tensor, ridge: float, metric: Tensor | None = None
) -> float:
    """Least ‖W − D‖² in the metric of the ridged Gram over consumers W that read only the units that are left."""
    gram = sums.gram.double().clone()
    gram.diagonal().add_(sums.penalty(ridge))
    rows = consumer.double() if metric is None else consumer.double() @ metric
    gone = torch.tensor([i for i in range(len(gram)) if i not in set(alive.tolist())], dtype=torch.int64)
    rest = gram[gone][:, gone] - gram[gone][:, alive] @ torch.linalg.solve(gram[alive][:, alive], gram[alive][:, gone])
    return float((rows[gone] * (rest @ rows[gone])).sum())


def naive(
    sums: ActivationSums, consumer: Tensor, count: int, size: int, keep: int, ridge: float, metric: Tensor | None = None
) -> list[int]:
    alive, gone = list(range(count)), []

    def features(blocks: list[int]) -> Tensor:
        return torch.tensor([b * size + i for b in blocks for i in range(size)])

    while len(alive) > keep:
        losses = {b: objective(sums, consumer, features([o for o in alive if o != b]), ridge, metric) for b in alive}
        worst = min(alive, key=losses.__getitem__)
        alive.remove(worst)
        gone.append(worst)
    return gone


@pytest.mark.parametrize("with_metric", [False, True])
def test_units_go_in_the_naive_order(with_metric: bool) -> None:
    sums, consumer = problem(30)
    metric = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) if with_metric else None
    found = eliminate_units(sums, consumer, 8, 1e-3, metric=metric)
    assert found.removed.tolist() == naive(sums, consumer, 30, 1, 8, 1e-3, metric)
    assert found.kept.tolist() == sorted(set(range(30)) - set(found.removed.tolist()))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_blocks_go_in_the_naive_order(size: int) -> None:
    sums, consumer = problem(30, seed=1)
    found = eliminate_blocks(sums, consumer, 2, size, 1e-3)
    assert found.removed.tolist() == naive(sums, consumer, 30 // size, size, 2, 1e-3)


def test_costs_are_the_rise_of_the_objective() -> None:
    sums, consumer = problem(24, seed=2)
    found = eliminate_units(sums, consumer, 10, 1e-2)
    assert float(found.costs.sum()) == pytest.approx(objective(sums, consumer, found.kept, 1e-2), rel=1e-6)


def test_the_objective_is_the_one_that_the_refit_minimises() -> None:
    """What elimination counts of the units that go is the refit's loss and the ridge on their own rows."""
    sums, consumer = problem(24, seed=7)
    found = eliminate_units(sums, consumer, 10, 1e-2)
    change = -consumer.double()
    change[found.kept] += refit(sums, consumer, found.kept, 1e-2).double()
    gram = sums.gram.double().clone()
    gram.diagonal().add_(sums.penalty(1e-2))
    assert float(found.costs.sum()) == pytest.approx(float((change * (gram @ change)).sum()), rel=1e-5)


def test_delayed_updates_agree_with_immediate_ones() -> None:
    """More removals than one block of delayed updates holds, and than pass before rows are cut away."""
    sums, consumer = problem(300, seed=4, rows=3000)
    units, blocks = eliminate_units(sums, consumer, 50, 1e-3), eliminate_blocks(sums, consumer, 50, 1, 1e-3)
    assert torch.equal(units.removed, blocks.removed)
    torch.testing.assert_close(units.costs, blocks.costs, rtol=1e-5, atol=1e-8)


def test_a_prefix_of_the_order_is_the_order_of_a_milder_ratio_bit_for_bit() -> None:
    sums, consumer = problem(300, seed=5, rows=2000)
    long, short = (eliminate_units(sums, consumer, keep, 1e-3) for keep in (60, 200))
    assert torch.equal(long.removed[:100], short.removed)
    assert torch.equal(long.costs[:100], short.costs)


def test_float32_chooses_as_float64_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, consumer = problem(200, seed=6, rows=4000)
    wide = eliminate_units(sums, consumer, 100, 1e-3)
    monkeypatch.setattr(least_squares, "WIDE", 0)
    narrow = eliminate_units(sums, consumer, 100, 1e-3)
    assert len(set(wide.kept.tolist()) & set(narrow.kept.tolist())) >= 98
    assert float(narrow.costs.sum()) == pytest.approx(float(wide.costs.sum()), rel=1e-3)


def test_dead_and_duplicated_units_go_first_and_cost_nothing() -> None:
    generator = torch.Generator().manual_seed(6)
    a = torch.randn(400, 10, generator=generator)
    a[:, 7] = 0
    a[:, 4] = a[:, 2]
    consumer = torch.randn(10, 3, generator=generator)
    found = eliminate_units(activation_sums([(a, torch.ones(400))]), consumer, 8, 1e-7)
    assert found.removed[0] == 7
    assert found.removed[1] in (2, 4)
    assert float(found.costs.sum()) < 1e-4 * float((a @ consumer).square().sum())


def test_keeping_all_removes_none() -> None:
    sums, consumer = problem(12)
    assert len(eliminate_units(sums, consumer, 12, 1e-3).removed) == 0
    assert eliminate_blocks(sums, consumer, 4, 3, 1e-3).kept.tolist() == [0, 1, 2, 3]


def test_downdating_destroys_no_more_than_it_is_given() -> None:
    removed, costs = downdate_in_blocks(torch.eye(3), torch.diag(torch.tensor([3.0, 1.0, 2.0])), 2)
    assert removed.tolist() == [1, 2]
    assert costs.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("keep", [0, 13])
def test_impossible_numbers_are_refused(keep: int) -> None:
    sums, consumer = problem(12)
    with pytest.raises(ValueError, match="keep must be"):
        eliminate_units(sums, consumer, keep, 1e-3)
    with pytest.raises(ValueError, match="keep must be"):
        eliminate_blocks(sums, consumer, keep, 1, 1e-3)
