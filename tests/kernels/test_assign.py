from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold_kernels import assign_rows, nearest_centre, segments

from .conftest import DTYPES, LONG_IN_THE_INTERPRETER, SIZES

Draw = Callable[..., Tensor]


def distances(rows: Tensor, centroids: Tensor) -> Tensor:
    return torch.cdist(rows.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_nearest_of_all_centroids(draw: Draw, n: int, d: int, dtype: torch.dtype, share: float) -> None:
    k = max(1, int(share * n))
    rows, centroids = draw(n, d, dtype=dtype), draw(k, d, dtype=dtype, seed=5)
    found = assign_rows(rows, centroids)
    exact = distances(rows, centroids)
    scale = float(rows.double().square().sum(1).max() + centroids.double().square().sum(1).max())
    assert found.labels.dtype == torch.int64
    torch.testing.assert_close(found.distances.double(), exact.amin(1), rtol=1e-5, atol=4e-6 * scale)
    chosen = exact.gather(1, found.labels[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, exact.amin(1), rtol=1e-5, atol=4e-6 * scale)


def test_rows_as_their_own_centroids(draw: Draw) -> None:
    rows = draw(130, 40)
    assert assign_rows(rows, rows.clone()).labels.tolist() == list(range(130))


def test_ties_go_to_the_lowest_centroid(draw: Draw) -> None:
    centroids = draw(9, 21).mul(4).round().half()  # whole numbers: equal products are equal to the last bit
    doubled = torch.cat((centroids, centroids, centroids))
    assert assign_rows(centroids.repeat(5, 1), doubled).labels.tolist() == list(range(9)) * 5


def test_strided_rows_and_centroids(draw: Draw) -> None:
    rows, centroids = draw(40, 65).T, draw(40, 33, seed=1).T
    plain = assign_rows(rows.contiguous(), centroids.contiguous())
    assert torch.equal(assign_rows(rows, centroids).labels, plain.labels)


def test_centroids_that_do_not_fit(draw: Draw) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        assign_rows(draw(3, 4), draw(2, 5))
    with pytest.raises(ValueError, match="do not fit"):
        assign_rows(draw(3, 4), draw(0, 4))
    with pytest.raises(ValueError, match="do not fit"):
        assign_rows(draw(3, 4), draw(2, 4, dtype=torch.float16))


def scores(gram: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offset, scale and score (k x n, infinite for empty clusters) of every mean, in float64."""
    chosen = (labels[:, None] == torch.arange(k, device=labels.device)).double().T
    sizes = chosen.sum(1)
    sums = chosen @ gram.double()
    offset = (sums @ chosen.T).diagonal() / sizes.clamp(min=1).square()
    offset[sizes == 0] = torch.inf
    scale = 2 / sizes.clamp(min=1)
    return offset, scale, offset[:, None] - scale[:, None] * sums


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (17, 17), (129, 1), (129, 100), pytest.param(1000, 777, marks=LONG_IN_THE_INTERPRETER)]
)
def test_nearest_centre_in_gram_space(draw: Draw, n: int, k: int) -> None:
    rows = draw(n, 40)
    gram = rows @ rows.T
    labels = (torch.rand(n, generator=torch.Generator().manual_seed(3)) ** 2 * k).long().to(gram.device)
    offset, scale, expected = scores(gram, labels, k)
    strided = torch.stack([offset, scale], 1).float().unbind(1)
    found = nearest_centre(gram, segments(labels, k), *strided, labels)
    tolerance = {"rtol": 1e-5, "atol": 2e-5 * float(gram.diagonal().max())}
    torch.testing.assert_close(found.scores.double(), expected.amin(0), **tolerance)
    torch.testing.assert_close(expected.gather(0, found.labels[None]).squeeze(0), expected.amin(0), **tolerance)
    torch.testing.assert_close(found.own.double(), expected.gather(0, labels[None]).squeeze(0), **tolerance)


def test_equal_centres_in_gram_space_go_to_the_lowest(draw: Draw, device: torch.device) -> None:
    rows = draw(12, 8).repeat(4, 1)
    labels = torch.arange(48, device=device).flip(0)
    gram = rows @ rows.T
    gram = gram[:12, :12].repeat(4, 4).contiguous()
    norms, twos = gram.diagonal().flip(0).contiguous(), torch.full((48,), 2.0, device=device)
    found = nearest_centre(gram, segments(labels, 48), norms, twos, labels)
    # Rows i, i + 12, ... are equal, and centre c is row 47 - c: the lowest centre is that of the last of them.
    assert found.labels.tolist() == [11 - i % 12 for i in range(48)]
