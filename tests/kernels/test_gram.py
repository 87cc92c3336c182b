from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold_kernels import gram
from llmfold_kernels.dispatch import installed
from llmfold_kernels.gram import Epilogue, naive

from .conftest import DTYPES, LONG_IN_THE_INTERPRETER, SIZES

Draw = Callable[..., Tensor]


def exact(blocks: list[Tensor], epilogue: str, weights: Tensor | None) -> Tensor:
    x = torch.cat(blocks, 1).double()
    if epilogue == "products":
        return x @ x.T
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    return distances if epilogue == "distances" else distances * w[:, None] * w / (w[:, None] + w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_three_blocks_of_different_layouts(draw: Draw, n: int, d: int, dtype: torch.dtype) -> None:
    blocks = [draw(n, d, dtype=dtype), draw(d, n, dtype=dtype, seed=1).T, draw(n, 3, dtype=dtype, seed=2)[:, ::2]]
    found = gram(blocks)
    expected = exact(blocks, "products", None)
    scale = float(expected.diagonal().max())
    assert found.matrix.dtype == found.norms.dtype == torch.float32
    assert torch.equal(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.matrix.double(), expected, rtol=0, atol=2e-6 * scale)
    torch.testing.assert_close(found.norms.double(), expected.diagonal(), rtol=2e-6, atol=0)
    torch.testing.assert_close(found.matrix, naive.gram(blocks, "products", None)[0], rtol=0, atol=4e-6 * scale)


@pytest.mark.parametrize("epilogue", ["distances", "costs"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d"), [(1, 17), (129, 17), pytest.param(600, 700, marks=LONG_IN_THE_INTERPRETER)])
def test_epilogues(draw: Draw, n: int, d: int, epilogue: Epilogue, weighted: bool) -> None:
    blocks = [draw(n, d), draw(n, 5, seed=1)]
    weights = (draw(2 * n).abs() + 0.5)[::2] if weighted else None
    found = gram(blocks, epilogue=epilogue, weights=weights)
    expected = exact(blocks, epilogue, weights)
    assert not found.matrix.diagonal().any()
    assert float(found.matrix.min()) >= 0
    assert torch.equal(found.matrix, found.matrix.T)
    bound = 4e-6 * float(found.norms.max()) * (1.0 if weights is None else float(weights.max()))
    torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-5, atol=bound)


def test_equal_rows_are_at_no_distance(draw: Draw) -> None:
    rows = draw(40, 33)[torch.arange(40) % 7]
    found = gram([rows], epilogue="distances").matrix
    same = torch.arange(40) % 7
    assert float(found[same[:, None] == same].max()) < 1e-5 * float(rows.float().square().sum(1).max())


def test_the_same_bits_twice(draw: Draw) -> None:
    blocks = [draw(129, 900, dtype=torch.float16)]
    assert torch.equal(gram(blocks).matrix, gram(blocks).matrix)


def test_a_block_without_rows_in_common(draw: Draw) -> None:
    with pytest.raises(ValueError, match="same rows"):
        gram([draw(3, 2), draw(4, 2)])
    with pytest.raises(ValueError, match="epilogue"):
        gram([draw(3, 2)], epilogue="cosine")  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [0, 232_448])
def test_tiles_of_any_shape_meet_at_the_diagonal(draw: Draw, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    if installed():
        from llmfold_kernels.gram import kernel

        monkeypatch.setattr(kernel, "shared_memory", lambda _: memory)
    blocks = [draw(1100, 20, dtype=torch.float16)]
    expected = exact(blocks, "products", None)
    found = gram(blocks)
    assert torch.equal(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.matrix.double(), expected, rtol=0, atol=2e-6 * float(expected.diagonal().max()))
    torch.testing.assert_close(found.norms.double(), expected.diagonal(), rtol=2e-6, atol=0)
