from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from llmfold.clustering import gram, inertia_of_rows, squared_distances, ward
from llmfold.clustering.partition import numbered_by_first_occurrence

Rows = Callable[..., Tensor]
Merge = tuple[int, int, float]


def distances_of(points: Tensor) -> Tensor:
    return squared_distances([points], gram([points]))


def greedy(distances: NDArray[np.float64], k: int) -> list[Merge]:
    """Search the whole matrix before each merge, lowest pair first."""
    n, w = len(distances), np.ones(len(distances))
    cost = distances / 2
    cost[np.tril_indices(n)] = np.inf
    alive = np.ones(n, bool)
    merges = []
    for _ in range(n - k):
        a, b = divmod(int(cost.argmin()), n)
        price = cost[a, b]
        full = np.minimum(cost, cost.T)
        merged = ((w + w[a]) * full[a] + (w + w[b]) * full[b] - w * price) / (w + (w[a] + w[b]))
        alive[b] = False
        merged[~alive] = np.inf
        cost[b, :] = cost[:, b] = np.inf
        cost[a, a + 1 :], cost[:a, a] = merged[a + 1 :], merged[:a]
        w[a] += w[b]
        merges.append((a, b, float(price)))
    return merges


def assert_same(distances: Tensor, k: int) -> None:
    expected = greedy(distances.numpy(), k)
    found = ward(distances, k)
    assert found.pairs.tolist() == [list(merge[:2]) for merge in expected]
    torch.testing.assert_close(found.costs, torch.tensor([merge[2] for merge in expected], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=24),
    keep=st.floats(0, 1),
)
def test_equals_naive_greedy_with_many_ties(points: list[tuple[int, int]], keep: float) -> None:
    grid = torch.tensor(points, dtype=torch.float64)
    assert_same(distances_of(grid), max(1, round(keep * len(points))))


@pytest.mark.parametrize("k", [1, 20, 59, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_naive_greedy(rows: Rows, k: int, seed: int) -> None:
    assert_same(distances_of(rows(seed=seed)), k)


def test_equals_naive_greedy_on_distances_that_are_no_gram() -> None:
    matrix = torch.rand(50, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix = (matrix + matrix.T).fill_diagonal_(0)
    assert_same(matrix, 1)


@pytest.mark.parametrize("k", [1, 2, 15, 20, 40, 59])
def test_agrees_with_scikit_learn(rows: Rows, k: int) -> None:
    points = rows()
    theirs = torch.from_numpy(AgglomerativeClustering(n_clusters=k, linkage="ward").fit_predict(points.numpy()))
    ours = ward(distances_of(points), k).labels(k)
    assert torch.equal(ours, numbered_by_first_occurrence(theirs))


def test_float32_inertia_agrees_with_scikit_learn() -> None:
    points = torch.randn(300, 40, generator=torch.Generator().manual_seed(5))
    theirs = torch.from_numpy(AgglomerativeClustering(n_clusters=200, linkage="ward").fit_predict(points.numpy()))
    ours = ward(distances_of(points), 200).labels(200)
    assert inertia_of_rows([points], ours) == pytest.approx(inertia_of_rows([points], theirs), rel=1e-5)


def test_costs_add_up_to_the_inertia(rows: Rows) -> None:
    points = rows()
    dendrogram = ward(distances_of(points), 1)
    for k in (1, 10, 30, 60):
        expected = inertia_of_rows([points], dendrogram.labels(k))
        assert float(dendrogram.costs[: 60 - k].sum()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cuts_agree_with_separate_runs(rows: Rows) -> None:
    distances = distances_of(rows())
    dendrogram = ward(distances, 10)
    for k in (10, 11, 35, 59, 60):
        assert torch.equal(dendrogram.labels(k), ward(distances, k).labels(k))
        assert dendrogram.labels(k).unique().tolist() == list(range(k))
    for k in (9, 61):
        with pytest.raises(ValueError, match="from 10 to 60"):
            dendrogram.labels(k)


def test_permuted_rows_give_permuted_labels(rows: Rows) -> None:
    points = rows()
    permutation = torch.randperm(60, generator=torch.Generator().manual_seed(8))
    plain = ward(distances_of(points), 30).labels(30)
    permuted = ward(distances_of(points[permutation]), 30).labels(30)
    assert torch.equal(permuted, numbered_by_first_occurrence(plain[permutation]))


def test_duplicates_merge_first_and_for_nothing(rows: Rows) -> None:
    points = rows(n=20)
    dendrogram = ward(distances_of(torch.cat([points, points, points[:5]])), 20)
    assert not dendrogram.costs.any()
    assert torch.equal(dendrogram.labels(20), torch.cat([torch.arange(20), torch.arange(20), torch.arange(5)]))


def test_equal_rows_go_to_the_lowest_index() -> None:
    dendrogram = ward(torch.zeros(5, 5), 2)
    assert dendrogram.pairs.tolist() == [[0, 1], [0, 2], [0, 3]]
    assert dendrogram.labels(2).tolist() == [0, 0, 0, 0, 1]


def test_overwrite_is_opt_in(rows: Rows) -> None:
    distances = distances_of(rows())
    kept = distances.clone()
    first = ward(distances, 30)
    assert torch.equal(distances, kept)
    assert torch.equal(first.pairs, ward(distances, 30, overwrite=True).pairs)
    assert not torch.equal(distances, kept)


def test_half_precision_distances_are_widened(rows: Rows) -> None:
    half = distances_of(rows()).to(torch.bfloat16)
    assert torch.equal(ward(half, 20).pairs, ward(half.float(), 20).pairs)


def test_one_row() -> None:
    assert ward(torch.zeros(1, 1), 1).labels(1).tolist() == [0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_unusable_distances(bad: float) -> None:
    distances = distances_of(torch.eye(4))
    distances[1, 2] = distances[2, 1] = bad
    with pytest.raises(ValueError, match="finite and nonnegative"):
        ward(distances, 2)


def test_unusable_arguments() -> None:
    distances = distances_of(torch.eye(4))
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to 4"):
            ward(distances, k)
    with pytest.raises(ValueError, match="square"):
        ward(distances[:3], 2)
