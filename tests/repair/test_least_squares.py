"""Normal equations and ridge least squares."""

import pytest
import torch
from torch import Tensor

from llmfold.repair.least_squares import NormalEquations, accumulate, solve


def problem(rows: int = 400, features: int = 12, targets: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, features, generator=generator)
    y = a @ torch.randn(features, targets, generator=generator) + torch.randn(rows, targets, generator=generator) + 2
    return a, y, torch.rand(rows, generator=generator) + 0.1


def equations(a: Tensor, y: Tensor, w: Tensor, block: int = 64) -> NormalEquations:
    return accumulate(zip(a.split(block), y.split(block), w.split(block), strict=True))


def test_blocks_add_up_to_the_whole() -> None:
    a, y, w = problem()
    blocked, whole = equations(a, y, w, 64), equations(a, y, w, len(a))
    torch.testing.assert_close(blocked.gram, whole.gram, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(blocked.cross, whole.cross, rtol=1e-5, atol=1e-4)
    assert blocked.energy == pytest.approx(float((w[:, None] * y**2).sum()), rel=1e-5)
    both = equations(a[:256], y[:256], w[:256]) + equations(a[256:], y[256:], w[256:])
    torch.testing.assert_close(both.gram, blocked.gram, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_solution_is_the_weighted_least_squares_one(bias: bool) -> None:
    a, y, w = problem()
    found, offset = solve(equations(a, y, w), 1e-12, bias=bias)
    root = w.double().sqrt()[:, None]
    features = torch.cat((a, torch.ones(len(a), 1)), 1).double() if bias else a.double()
    expected = torch.linalg.lstsq(features * root, y.double() * root).solution
    torch.testing.assert_close(found, expected[: a.shape[1]], rtol=1e-4, atol=1e-5)
    if bias:
        assert offset is not None
        torch.testing.assert_close(offset, expected[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_error_is_that_of_the_rows(bias: bool) -> None:
    a, y, w = problem()
    system = equations(a, y, w)
    weights, offset = solve(system, 1e-3, bias=bias)
    rest = y.double() - a.double() @ weights - (0 if offset is None else offset)
    expected = float((rest.square().sum(1) * w).sum() / (y.double().square().sum(1) * w).sum())
    assert system.error(weights, offset) == pytest.approx(expected, rel=1e-4)


def test_a_bias_never_hurts_and_more_features_never_hurt() -> None:
    system = equations(*problem())
    plain = system.error(*solve(system, 1e-12))
    assert system.error(*solve(system, 1e-12, bias=True)) <= plain
    fewer = system.restricted(torch.arange(6))
    assert fewer.error(*solve(fewer, 1e-12)) >= plain


def test_row_weights_scale_out() -> None:
    system = equations(*problem())
    torch.testing.assert_close(solve(system.scaled(7.0), 1e-3)[0], solve(system, 1e-3)[0])


def test_duplicated_features_are_solvable() -> None:
    a, y, w = problem()
    system = equations(torch.cat((a, a), 1), y, w)
    weights, _ = solve(system, 1e-6)
    assert torch.isfinite(weights).all()
    assert system.error(weights) == pytest.approx(equations(a, y, w).error(*solve(equations(a, y, w), 1e-6)), abs=1e-4)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        accumulate([])
