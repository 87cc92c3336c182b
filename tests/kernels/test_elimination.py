from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold_kernels import eliminate

from .conftest import LONG_IN_THE_INTERPRETER

Draw = Callable[..., Tensor]


def problem(draw: Draw, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gram and cross products of a well-posed problem."""
    a = draw(3 * n + 5, n, seed=1).to(dtype)
    return a.T @ a / len(a) + 0.1 * torch.eye(n, dtype=dtype, device=a.device), draw(n, 4, seed=2).to(dtype)


@pytest.mark.parametrize(
    ("n", "steps"),
    [
        (1, 0),
        (2, 1),
        (17, 16),
        pytest.param(80, 70, marks=LONG_IN_THE_INTERPRETER),
        pytest.param(260, 2, marks=LONG_IN_THE_INTERPRETER),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_cost_is_the_rise_of_the_refit_objective(draw: Draw, n: int, steps: int, dtype: torch.dtype) -> None:
    gram, cross = problem(draw, n, dtype)
    inverse = torch.linalg.inv(gram)
    refit = inverse @ cross
    removed, costs = eliminate(inverse, refit @ refit.T, steps)
    assert len(set(removed.tolist())) == steps
    wide, targets = gram.double().cpu(), cross.double().cpu()

    def explained(kept: Tensor) -> float:
        return float((targets[kept] * torch.linalg.solve(wide[kept][:, kept], targets[kept])).sum())

    kept = torch.arange(n)
    for unit, cost in zip(removed[:3].tolist(), costs[:3].tolist(), strict=True):
        without = {other: explained(kept[kept != other]) for other in kept.tolist()}
        rises = {other: explained(kept) - value for other, value in without.items()}
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        assert rises[unit] <= min(rises.values()) + tolerance * abs(rises[unit]) + tolerance
        assert cost == pytest.approx(rises[unit], rel=100 * tolerance, abs=tolerance)
        kept = kept[kept != unit]


@pytest.mark.slow
def test_equal_units_go_in_order(device: torch.device) -> None:
    eye = torch.eye(70, device=device)
    removed, costs = eliminate(eye.clone(), eye.clone(), 69)
    assert removed.tolist() == list(range(69))
    assert costs.tolist() == [1.0] * 69


def test_what_does_not_fit(device: torch.device) -> None:
    eye = torch.eye(3, device=device)
    with pytest.raises(ValueError, match=r"0 to 2"):
        eliminate(eye.clone(), eye.clone(), 3)
    with pytest.raises(ValueError, match="square"):
        eliminate(eye[:2].clone(), eye.clone(), 1)
