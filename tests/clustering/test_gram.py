from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold.clustering import gram, squared_distances

Rows = Callable[..., Tensor]


def exact_distances(points: Tensor) -> Tensor:
    wide = points.double()
    return (wide[:, None] - wide[None]).square().sum(2)


@pytest.mark.parametrize("tile", [1, 7, 16, 2048])
def test_gram_of_blocks_equals_product_of_concatenation(rows: Rows, tile: int) -> None:
    points = rows()
    blocks = [points[:, :5], points[:, 5:6], points[:, 6:].T.contiguous().T]
    out = gram(blocks, tile=tile)
    assert out.dtype == torch.float64
    assert torch.equal(out, out.T)
    torch.testing.assert_close(out, points @ points.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gram_accumulates_in_float32(dtype: torch.dtype) -> None:
    points = torch.randn(96, 9000, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = gram([points, points[:, :100]], tile=64)
    exact = points.double() @ points.double().T + points[:, :100].double() @ points[:, :100].double().T
    assert out.dtype == torch.float32
    assert torch.equal(out, out.T)
    assert float((out - exact).abs().max() / exact.diagonal().max()) < 2e-6


def test_gram_restores_the_matmul_precision() -> None:
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this torch has no such setting")
    before = settings.fp32_precision
    gram([torch.ones(3, 2, dtype=torch.bfloat16)])
    with pytest.raises(ValueError, match="NaN"):
        gram([torch.full((3, 2), torch.nan, dtype=torch.bfloat16)])
    assert settings.fp32_precision == before


@pytest.mark.usefixtures("poisoned")
def test_results_do_not_depend_on_uninitialised_memory(rows: Rows) -> None:
    points = rows().float()
    products = gram([points], tile=16)
    torch.testing.assert_close(products, points @ points.T)
    distances = squared_distances([points], products, tile=16)
    torch.testing.assert_close(distances.double(), exact_distances(points), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile", [9, 1024])
def test_squared_distances_in_place(rows: Rows, dtype: torch.dtype, tile: int) -> None:
    points = rows().to(dtype)
    products = gram([points])
    out = squared_distances([points], products, tile=tile)
    assert out.data_ptr() == products.data_ptr()
    assert torch.equal(out, out.T)
    assert not out.diagonal().any()
    assert float(out.min()) >= 0
    torch.testing.assert_close(out.double(), exact_distances(points), rtol=1e-4, atol=0)


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("tile", [5, 1024])
def test_small_distances_survive_a_large_offset(rows: Rows, offset: float, tile: int) -> None:
    points = (rows(noise=1e-3) + offset).float()
    points[7] = points[3]
    out = squared_distances([points], gram([points]), tile=tile)
    assert float(out[7, 3]) == 0
    torch.testing.assert_close(out.double(), exact_distances(points), rtol=1e-4, atol=0)


def test_few_close_pairs_are_summed_directly() -> None:
    points = torch.randn(400, 50, generator=torch.Generator().manual_seed(1)) * 10
    for pair in range(150):
        points[2 * pair + 1] = points[2 * pair] + 1e-3
    points[1] = points[0]
    out = squared_distances([points[:, :20], points[:, 20:].T.contiguous().T], gram([points]))
    assert float(out[0, 1]) == 0
    torch.testing.assert_close(out.double(), exact_distances(points), rtol=1e-4, atol=0)


def test_translation_rotation_and_scale(rows: Rows) -> None:
    points = rows()
    plain = squared_distances([points], gram([points]))
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    moved = points @ rotation * 3 + 5
    torch.testing.assert_close(squared_distances([moved], gram([moved])), 9 * plain)


def test_zero_rows_are_duplicates() -> None:
    points = torch.zeros(4, 3)
    assert not squared_distances([points], gram([points])).any()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "at least one"),
        ([torch.ones(3)], "matrices"),
        ([torch.ones(3, 2, dtype=torch.int64)], "floating-point"),
        ([torch.ones(3, 2), torch.ones(4, 2)], "same number of rows"),
        ([torch.tensor([[1.0], [torch.inf]])], "NaN or infinite"),
        ([torch.tensor([[1.0], [1e30]])], "overflows"),
    ],
)
def test_unusable_blocks(blocks: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gram(blocks)


def test_gram_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        squared_distances([torch.ones(3, 2)], torch.ones(4, 4))
    with pytest.raises(ValueError, match="square"):
        squared_distances([torch.ones(4, 2)], torch.ones(4, 3))
