from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold.clustering import Clustering, Method, cluster
from llmfold.clustering.similarity import cluster_distances

Rows = Callable[..., Tensor]
METHODS: list[Method] = ["ward", "kmeans", "hartigan"]


def cluster_one(distances: Tensor, k: int, *, method: Method, seed: int = 0, overwrite: bool = False) -> Clustering:
    return cluster_distances(distances, [k], method=method, seed=seed, overwrite=overwrite)[0]


def metric(n: int = 12, seed: int = 0) -> Tensor:
    """Symmetric numbers with a zero diagonal that are no distances between points: triangles are violated."""
    values = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    return ((values + values.T) / 2).fill_diagonal_(0)


def naive_ward(distances: Tensor, k: int) -> tuple[list[set[int]], float]:
    """Merge by the formula on the members: half the change of (sum of pair distances) / size."""
    clusters, total = [{i} for i in range(len(distances))], 0.0

    def spread(members: set[int]) -> float:
        index = sorted(members)
        return float(distances[index][:, index].sum()) / (2 * len(index))

    while len(clusters) > k:
        costs = {
            (i, j): spread(clusters[i] | clusters[j]) - spread(clusters[i]) - spread(clusters[j])
            for i in range(len(clusters))
            for j in range(i)
        }
        i, j = min(costs, key=costs.__getitem__)
        total += costs[i, j]
        clusters[j] |= clusters.pop(i)
    return clusters, total


def spread(distances: Tensor, labels: Tensor) -> float:
    members = [labels == c for c in range(int(labels.max()) + 1)]
    return sum(float(distances[m][:, m].sum()) / (2 * int(m.sum())) for m in members)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 20, 45, 60])
def test_distances_of_points_cluster_like_the_points(rows: Rows, method: Method, k: int) -> None:
    points = rows(noise=0.3)
    distances = torch.cdist(points, points).square()
    found = cluster_one(distances, k, method=method, seed=4)
    expected = cluster([points], k, method=method, seed=4)
    assert found.k == k
    assert sorted(set(found.labels.tolist())) == list(range(k))
    assert found.inertia == pytest.approx(expected.inertia, rel=0.1 if method == "kmeans" else 1e-6, abs=1e-6)
    assert found.inertia == pytest.approx(spread(distances, found.labels), rel=1e-6, abs=1e-6)
    assert found.bound is None
    if method != "kmeans":
        assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("k", [1, 3, 7, 12])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ward_on_what_is_no_metric_merges_by_its_formula(k: int, seed: int) -> None:
    distances = metric(seed=seed)
    found = cluster_one(distances, k, method="ward")
    clusters, total = naive_ward(distances, k)
    assert {frozenset(torch.nonzero(found.labels == c).flatten().tolist()) for c in range(k)} == set(
        map(frozenset, clusters)
    )
    assert found.inertia == pytest.approx(total, abs=1e-12)
    assert found.inertia == pytest.approx(spread(distances, found.labels), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_clustering_of_what_is_no_metric_is_a_partition(method: Method) -> None:
    distances = metric(20)
    before = distances.clone()
    found = cluster_one(distances, 9, method=method)
    assert torch.equal(distances, before)
    assert sorted(set(found.labels.tolist())) == list(range(9))
    assert found.labels.device.type == "cpu"
    assert found.inertia == pytest.approx(max(spread(before, found.labels), 0), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_overwriting_the_distances_changes_no_label(method: Method) -> None:
    kept = cluster_one(metric(30), 20, method=method)
    destroyed = cluster_one(metric(30), 20, method=method, overwrite=True)
    assert torch.equal(kept.labels, destroyed.labels)
    assert kept.inertia == pytest.approx(destroyed.inertia)


def test_hartigan_refines_ward() -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances = torch.cdist(points, points).square()
    ward, refined = (cluster_one(distances, 8, method=m) for m in METHODS[::2])
    assert refined.inertia < ward.inertia


@pytest.mark.parametrize("method", ["ward", "hartigan"])
def test_order_of_units_renames_clusters_only(method: Method) -> None:
    distances = metric(15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    found = cluster_one(distances, 6, method=method).labels
    shuffled = cluster_one(distances[order][:, order], 6, method=method).labels
    together = found[:, None] == found
    assert torch.equal(together[order][:, order], shuffled[:, None] == shuffled)


def test_unusable_input() -> None:
    with pytest.raises(ValueError, match="method must be ward, kmeans or hartigan"):
        cluster_one(metric(), 3, method="median")  # type: ignore[arg-type]
    for method in METHODS:
        for k in (0, 13):
            with pytest.raises(ValueError, match="from 1 to 12"):
                cluster_one(metric(), k, method=method)
        with pytest.raises(ValueError, match="finite"):
            cluster_one(torch.full((4, 4), torch.nan), 2, method=method)
    with pytest.raises(ValueError, match="nonnegative"):
        cluster_one(-metric(), 3, method="ward")
