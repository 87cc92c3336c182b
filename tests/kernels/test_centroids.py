from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold_kernels import segment_sums, segments

from .conftest import DTYPES, SIZES

Draw = Callable[..., Tensor]


def one_hot_sums(rows: Tensor, labels: Tensor, k: int) -> Tensor:
    chosen = (labels[:, None] == torch.arange(k, device=labels.device)).double()
    return chosen.T @ rows.double()


def skewed(n: int, k: int, device: torch.device) -> Tensor:
    """Labels of very different sizes that leave some clusters empty."""
    return (torch.rand(n, generator=torch.Generator().manual_seed(n)) ** 3 * k).long().to(device)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_sums_and_means(draw: Draw, device: torch.device, n: int, d: int, dtype: torch.dtype, mean: bool) -> None:
    k = max(1, int(0.8 * n))
    rows, labels = draw(n, d, dtype=dtype), skewed(n, k, device)
    parts = segments(labels, k)
    expected = one_hot_sums(rows, labels, k)
    if mean:
        expected /= parts.sizes.clamp(min=1).double()[:, None]
    found = segment_sums(rows, parts, mean=mean)
    assert found.shape == (k, d)
    assert not found[parts.sizes == 0].any()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_rows_of_their_own_keep_their_bits(draw: Draw, device: torch.device) -> None:
    rows = draw(57, 31)
    labels = torch.arange(57, device=device).flip(0)
    assert torch.equal(segment_sums(rows, segments(labels, 57)), rows.flip(0))


def test_one_cluster_of_strided_rows(draw: Draw, device: torch.device) -> None:
    rows = draw(31, 129).T
    found = segment_sums(rows, segments(torch.zeros(129, dtype=torch.int64, device=device), 1))
    torch.testing.assert_close(found.double(), rows.double().sum(0, keepdim=True), rtol=1e-5, atol=1e-4)


def test_members_are_added_in_row_order(device: torch.device) -> None:
    """1e8 + 1 - 1e8 is 0 or 1 in float32, depending on the order."""
    rows = torch.tensor([[1e8], [-1e8], [1.0], [1e8], [1.0], [-1e8]], device=device)
    labels = torch.tensor([0, 0, 0, 1, 1, 1], device=device)
    assert segment_sums(rows, segments(labels, 2)).flatten().tolist() == [1.0, 0.0]


def test_segments_are_sorted_by_size_and_then_by_number(device: torch.device) -> None:
    found = segments(torch.tensor([2, 0, 2, 4, 0, 2], device=device), 5)
    assert found.order.tolist() == [1, 4, 0, 2, 5, 3]
    assert found.sizes.tolist() == [2, 0, 3, 0, 1]
    assert found.starts.tolist() == [0, 2, 2, 5, 5]
    assert found.ranked.tolist() == [2, 0, 4, 1, 3]


def test_labels_out_of_range(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        segments(torch.tensor([0, 2], device=device), 2)
