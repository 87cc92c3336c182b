"""Sums over activations and the refit of a consumer, against least squares written out."""

import pytest
import torch
from torch import Tensor

from llmfold.repair.least_squares import ActivationSums, activation_sums, product_sums, refit, refit_bias

KEPT = torch.tensor([0, 2, 3, 7, 8, 11])


def problem(rows: int = 400, units: int = 12, targets: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations that depend on one another, consumer rows (units, targets), row weights."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(units, units, generator=generator)
    a = torch.randn(rows, units, generator=generator) @ mix + 0.5
    return a, torch.randn(units, targets, generator=generator), torch.rand(rows, generator=generator) + 0.1


def sums(a: Tensor, w: Tensor, block: int = 64) -> ActivationSums:
    return activation_sums(zip(a.split(block), w.split(block), strict=True))


def objective(a: Tensor, w: Tensor, consumer: Tensor, kept: Tensor, rows: Tensor, penalty: float) -> float:
    rest = a.double() @ consumer.double() - a[:, kept].double() @ rows.double()
    pull = (rows.double() - consumer[kept].double()).square().sum()
    return float((rest.square().sum(1) * w).sum() + penalty * pull)


def test_blocks_add_up_to_the_whole() -> None:
    a, _, w = problem()
    blocked, whole = sums(a, w), sums(a, w, len(a))
    both = sums(a[:256], w[:256]) + sums(a[256:], w[256:])
    for found in (blocked, whole, both):
        torch.testing.assert_close(found.gram, (a * w[:, None]).T @ a, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found.total, (a * w[:, None]).double().sum(0), rtol=1e-5, atol=1e-4)
        assert found.weight == pytest.approx(float(w.sum()), rel=1e-5)


def test_a_wide_gram_is_symmetric_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfold.repair.least_squares.PANEL", 5)
    a, _, w = problem(units=13)
    found = sums(a, w).gram
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, (a * w[:, None]).T @ a, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("ridge", [1e-4, 1e-1, 1e1])
def test_the_refit_is_where_the_objective_is_least(ridge: float) -> None:
    a, consumer, w = problem()
    known = sums(a, w)
    found, penalty = refit(known, consumer, KEPT, ridge), known.penalty(ridge)
    least = objective(a, w, consumer, KEPT, found, penalty)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-1, 1e-2):
        for _ in range(10):
            moved = found + size * torch.randn(found.shape, generator=generator)
            assert objective(a, w, consumer, KEPT, moved, penalty) > least


def test_without_a_ridge_it_is_the_weighted_least_squares_solution() -> None:
    a, consumer, w = problem()
    root = w.double().sqrt()[:, None]
    expected = torch.linalg.lstsq(a[:, KEPT].double() * root, (a @ consumer).double() * root).solution
    torch.testing.assert_close(refit(sums(a, w), consumer, KEPT, 1e-9).double(), expected, rtol=1e-3, atol=1e-3)


def test_float32_gives_what_float64_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    a, consumer, w = problem(rows=2000, units=200, targets=40)
    kept = torch.arange(0, 200, 2)
    wide = refit(sums(a, w), consumer, kept, 0.01)
    monkeypatch.setattr("llmfold.repair.least_squares.WIDE", 0)
    torch.testing.assert_close(refit(sums(a, w), consumer, kept, 0.01), wide, rtol=1e-3, atol=1e-3)


def test_a_strong_ridge_leaves_the_rows_as_they_were() -> None:
    a, consumer, w = problem()
    torch.testing.assert_close(refit(sums(a, w), consumer, KEPT, 1e6), consumer[KEPT], rtol=1e-4, atol=1e-4)


def test_keeping_every_unit_changes_no_bit() -> None:
    a, consumer, w = problem()
    assert torch.equal(refit(sums(a, w), consumer, torch.arange(12), 0.1), consumer)


def test_a_unit_that_has_a_double_goes_without_loss() -> None:
    a, consumer, w = problem()
    a[:, 5] = 2 * a[:, 3]
    kept = torch.tensor([i for i in range(12) if i != 5])
    rows = refit(sums(a, w), consumer, kept, 1e-6)
    torch.testing.assert_close(a[:, kept] @ rows, a @ consumer, rtol=1e-3, atol=1e-2)


def test_row_weights_scale_out() -> None:
    a, consumer, w = problem()
    one, other = (refit(known, consumer, KEPT, 0.1) for known in (sums(a, w), sums(a, w).scaled(7.0)))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_free_bias_keeps_the_mean_output_and_fits_what_varies() -> None:
    a, consumer, w = problem()
    known, bias = sums(a, w), torch.ones(5)
    rows = refit(known.centred(), consumer, KEPT, 1e-6)
    offset = refit_bias(known, consumer, KEPT, rows, bias)
    rest = a @ consumer + bias - a[:, KEPT] @ rows - offset
    assert float((rest * w[:, None]).sum(0).abs().max()) < 1e-3 * float((a @ consumer).abs().sum(0).max())
    plain = a @ consumer - a[:, KEPT] @ refit(known, consumer, KEPT, 1e-6)
    assert (rest.square().sum(1) * w).sum() < (plain.square().sum(1) * w).sum()


def test_silent_units_are_no_obstacle() -> None:
    found = refit(sums(torch.zeros(30, 4), torch.ones(30)), torch.ones(4, 2), torch.tensor([0, 1]), 0.1)
    assert torch.equal(found, torch.ones(2, 2))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        activation_sums([])


@pytest.mark.parametrize("ridge", [1e-4, 1e-1, 1e1])
def test_rows_are_added_where_the_objective_is_least(ridge: float) -> None:
    a, consumer, w = problem()
    y = torch.randn(len(a), consumer.shape[1], generator=torch.Generator().manual_seed(2))
    blocks = list(zip(a.split(64), y.split(64), w.split(64), strict=True))
    known = product_sums(blocks[:3]) + product_sums(blocks[3:])
    found, penalty = known.added_rows(ridge), known.activations.penalty(ridge)
    gram = (a * w[:, None]).T.double() @ a.double()
    expected = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), (a * w[:, None]).T.double() @ y.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_what_the_units_can_give_is_given() -> None:
    a, consumer, w = problem()
    found = product_sums([(a, a @ consumer, w)]).added_rows(1e-9)
    torch.testing.assert_close(found, consumer, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="at least one block"):
        product_sums([])
