from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold_kernels import swiglu_gram

from .conftest import DTYPES, SIZES

Draw = Callable[..., Tensor]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("tokens", "n"), SIZES)
def test_normal_equations(draw: Draw, tokens: int, n: int, dtype: torch.dtype, weighted: bool) -> None:
    gate, up, targets = (draw(tokens, width, dtype=dtype, seed=s) for s, width in enumerate((n, n, 33)))
    weights = (draw(2 * tokens).abs() + 0.5)[::2] if weighted else None
    square, cross = swiglu_gram(gate, up, targets, weights)
    a = gate.double() * torch.sigmoid(gate.double()) * up.double()
    left = a if weights is None else a * weights.double()[:, None]
    scale = float((left.abs().T @ a.abs()).max())
    rounding = 2 * torch.finfo(dtype).eps + 1e-6
    assert torch.equal(square, square.T)
    torch.testing.assert_close(square.double(), left.T @ a, rtol=0, atol=rounding * scale + 1e-6)
    across = float((left.abs().T @ targets.double().abs()).max())
    torch.testing.assert_close(cross.double(), left.T @ targets.double(), rtol=0, atol=rounding * across + 1e-6)


def test_strongly_negative_gates_contribute_nothing(device: torch.device) -> None:
    gate = torch.full((40, 20), -200.0, device=device)
    square, cross = swiglu_gram(gate, gate, gate)
    assert not square.any()
    assert not cross.any()


def test_what_does_not_fit(draw: Draw) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        swiglu_gram(draw(4, 3), draw(4, 2), draw(4, 5))
