import math

import pytest
import torch
from torch import Tensor

from llmfold.folding.grouping import Groups
from llmfold.folding.variance import mean_correlation, variance_scale


def correlated(rhos: Tensor, d: int = 32, seed: int = 0) -> Tensor:
    """Rows of length one whose inner products are exactly ``rhos``."""
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    values, vectors = torch.linalg.eigh(rhos.double())
    root = vectors * values.clamp_min(0).sqrt()
    return torch.mm(root, basis[: len(rhos)])


def equicorrelation(m: int, rho: float) -> Tensor:
    return torch.full((m, m), rho, dtype=torch.float64).fill_diagonal_(1)


@pytest.mark.parametrize("m", [2, 3, 7])
@pytest.mark.parametrize("rho", [-0.1, 0.0, 0.3, 0.9, 1.0])
def test_factor_is_that_of_the_paper(m: int, rho: float) -> None:
    rows = correlated(equicorrelation(m, rho))
    factor = variance_scale([rows], Groups(torch.zeros(m, dtype=torch.int64)))
    assert factor.tolist() == pytest.approx([math.sqrt(m / (1 + (m - 1) * rho))], rel=1e-6)


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_the_scaled_mean_has_the_norm_of_its_members(m: int, rho: float) -> None:
    rows = correlated(equicorrelation(m, rho))
    factor = float(variance_scale([rows], Groups(torch.zeros(m, dtype=torch.int64))))
    assert float(rows.mean(0).norm()) * factor == pytest.approx(1, rel=1e-6)


def test_correlation_is_the_mean_cosine_over_pairs() -> None:
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    members = torch.tensor([1, 3, 4])
    pairs = [(1, 3), (1, 4), (3, 4)]
    expected = sum(float(torch.cosine_similarity(rows[a], rows[b], dim=0)) for a, b in pairs) / 3
    assert mean_correlation([rows], members, [None]) == pytest.approx(expected)
    blocks = [rows[:, :2], rows[:, 2:5], rows[:, 5:]]
    assert mean_correlation(blocks, members, [None] * 3) == pytest.approx(expected)


def test_correlation_does_not_see_the_length_or_rotation_of_rows() -> None:
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    members = torch.arange(4)
    turn, _ = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    expected = mean_correlation([rows], members, [None])
    lengths = torch.tensor([1.0, 20.0, 1e-3, 7.0], dtype=torch.float64)
    assert mean_correlation([rows @ turn * lengths[:, None]], members, [None]) == pytest.approx(expected)


def test_scales_are_applied_to_their_block() -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factor = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    groups = Groups(torch.tensor([0, 0, 1, 1, 1]))
    left, right = rows[:, :3], rows[:, 3:]
    found = variance_scale([left, right], groups, [factor, None])
    assert torch.allclose(found, variance_scale([left * factor[:, None], right], groups))
    assert not torch.allclose(found, variance_scale([left, right], groups))


def test_only_merged_units_are_scaled() -> None:
    rows = torch.cat([correlated(equicorrelation(2, 0.5)), correlated(equicorrelation(3, 0.2), seed=1)])
    order = torch.tensor([0, 2, 1, 3, 4])
    found = variance_scale([rows[order]], Groups(torch.tensor([0, 1, 0, 2, 2])))
    assert found.tolist() == pytest.approx([math.sqrt(2 / 1.5), 1.0, math.sqrt(2 / 1.2)], rel=1e-6)


def test_members_that_cancel_or_are_zero_give_a_finite_factor() -> None:
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert variance_scale([opposed], Groups(torch.tensor([0, 0]))).tolist() == [1.0]
    dead = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert variance_scale([dead], Groups(torch.tensor([0, 0]))).tolist() == pytest.approx([math.sqrt(2)])
    assert bool(variance_scale([torch.zeros(3, 2)], Groups(torch.tensor([0, 0, 0]))).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_dtypes_are_measured_in_float32(dtype: torch.dtype) -> None:
    rows = (100 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(3))).to(dtype)
    expected = float(torch.cosine_similarity(rows[0].double(), rows[1].double(), dim=0))
    assert mean_correlation([rows], torch.arange(2), [None]) == pytest.approx(expected, abs=1e-6)
