from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from llmfold.clustering import gram, hartigan, inertia, kmeans, kmeans_plus_plus, lloyd, squared_distances, ward
from llmfold.clustering.partition import numbered_by_first_occurrence

Rows = Callable[..., Tensor]


def nearest_seed(points: Tensor, seeds: Tensor) -> Tensor:
    return torch.cdist(points.double(), points[seeds].double()).argmin(1)


def cost_of_moves(points: Tensor, labels: Tensor, k: int) -> Tensor:
    """Inertia of every partition that differs by moving one row: n x k."""
    products = gram([points])
    out = torch.empty(len(points), k)
    for row in range(len(points)):
        for target in range(k):
            moved = labels.clone()
            moved[row] = target
            out[row, target] = inertia(products, moved)
    return out


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("k", [1, 20, 45, 60])
def test_lloyd_from_the_same_seeds_agrees_with_scikit_learn(rows: Rows, k: int) -> None:
    points = rows(noise=0.3)
    seeds = kmeans_plus_plus(gram([points]), k, 0)
    theirs = KMeans(n_clusters=k, init=points[seeds].numpy(), n_init=1, tol=0, algorithm="lloyd").fit(points.numpy())
    ours = lloyd(gram([points]), nearest_seed(points, seeds), k)
    assert torch.equal(
        numbered_by_first_occurrence(ours), numbered_by_first_occurrence(torch.from_numpy(theirs.labels_).long())
    )
    assert inertia(gram([points]), ours) == pytest.approx(theirs.inertia_, rel=1e-5, abs=1e-9)


def test_kmeans_is_seeding_then_lloyd(rows: Rows) -> None:
    points = rows(noise=0.3).float()
    products = gram([points])
    expected = lloyd(products, nearest_seed(points, kmeans_plus_plus(products, 25, 4)), 25)
    assert torch.equal(kmeans(products, 25, seed=4), expected)


def test_float32_inertia_agrees_with_scikit_learn() -> None:
    points = torch.randn(300, 40, generator=torch.Generator().manual_seed(5))
    products = gram([points])
    seeds = kmeans_plus_plus(products, 100, 1)
    theirs = KMeans(n_clusters=100, init=points[seeds].numpy(), n_init=1, tol=0).fit(points.numpy())
    found = inertia(products, lloyd(products, nearest_seed(points, seeds), 100))
    assert found == pytest.approx(theirs.inertia_, rel=1e-5)


def test_seeds_are_distinct_and_depend_on_the_seed_only(rows: Rows) -> None:
    products = gram([rows()])
    seeds = kmeans_plus_plus(products, 60, 3)
    assert sorted(seeds.tolist()) == list(range(60))
    torch.manual_seed(99)
    assert torch.equal(kmeans_plus_plus(products, 60, 3), seeds)
    assert not torch.equal(kmeans_plus_plus(products, 60, 4), seeds)


def test_seeds_prefer_far_rows() -> None:
    points = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])
    products = gram([points + 1])
    assert all(int((points[kmeans_plus_plus(products, 2, seed)]).sum()) == 1 for seed in range(20))


def test_seeds_serve_near_duplicates_about_as_well_as_those_of_scikit_learn(rows: Rows) -> None:
    points = rows(n=500, d=100, groups=400, noise=0.3)
    products = gram([points])
    theirs = KMeans(n_clusters=400, n_init=1, random_state=0).fit(points.numpy())
    assert inertia(products, kmeans(products, 400, seed=0)) < 1.1 * theirs.inertia_


def test_seeds_among_duplicates_are_still_distinct() -> None:
    seeds = kmeans_plus_plus(gram([torch.ones(6, 2)]), 4, 0)
    assert len(seeds.unique()) == 4
    assert seeds[1:].tolist() == [row for row in range(6) if row != seeds[0]][:3]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exactly_k_clusters_whatever_the_rows(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 16))
    points = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=torch.float32)[:, None]
    k = data.draw(st.integers(1, n))
    start = torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    products = gram([points])
    for labels in (kmeans(products, k, seed=0), lloyd(products, start, k)):
        assert labels.unique().tolist() == list(range(k))
        refined = hartigan(products, labels, k)
        assert refined.unique().tolist() == list(range(k))
        assert inertia(products, refined) <= inertia(products, labels) + 1e-9


def test_empty_clusters_take_the_farthest_rows() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0], [20.0]])
    assert lloyd(gram([points]), torch.zeros(5, dtype=torch.int64), 3, max_iterations=1).tolist() == [2, 0, 0, 0, 1]


def test_lloyd_never_raises_the_inertia(rows: Rows) -> None:
    products = gram([rows(noise=0.5)])
    labels = torch.arange(60) % 15
    for _ in range(6):
        moved = lloyd(products, labels, 15, max_iterations=1)
        assert inertia(products, moved) <= inertia(products, labels) * (1 + 1e-12)
        labels = moved
    assert torch.equal(lloyd(products, labels, 15, max_iterations=0), labels)


@pytest.mark.parametrize("k", [2, 8, 18])
def test_hartigan_ends_where_no_single_move_helps(rows: Rows, k: int) -> None:
    points = rows(n=24, d=3, noise=0.5)
    start = torch.arange(24) % k
    products = gram([points])
    labels = hartigan(products, start, k, max_passes=50)
    found = inertia(products, labels)
    assert found < inertia(products, start)
    lonely = torch.bincount(labels)[labels] == 1
    assert float(cost_of_moves(points, labels, k)[~lonely].min()) >= found * (1 - 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 10, 40, 59, 60])
def test_hartigan_never_raises_the_inertia_of_ward(rows: Rows, dtype: torch.dtype, k: int) -> None:
    points = rows(noise=0.5).to(dtype)
    products = gram([points])
    start = ward(squared_distances([points], products.clone()), k).labels(k)
    labels = hartigan(products, start, k)
    assert inertia(products, labels) <= inertia(products, start) + 1e-12
    assert labels.unique().tolist() == list(range(k))
    assert torch.equal(hartigan(products, start, k, max_passes=0), start)


def test_rounding_moves_nothing() -> None:
    points = torch.full((12, 4), 1000.0) + 1e-4 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 4
    assert torch.equal(hartigan(gram([points]), labels, 4), labels)
    assert torch.equal(lloyd(gram([points]), labels, 4), labels)


def test_unusable_input() -> None:
    products, labels = torch.eye(4), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="from 1 to 4"):
        kmeans_plus_plus(products, 5, 0)
    with pytest.raises(ValueError, match="from 1 to 4"):
        lloyd(products, labels, 0)
    with pytest.raises(ValueError, match="non-empty"):
        hartigan(products, labels, 2)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        lloyd(products, labels + 2, 2)
    for run in (lambda bad: kmeans(bad, 2, seed=0), lambda bad: lloyd(bad, labels, 2)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            run(torch.full((4, 4), torch.nan))
