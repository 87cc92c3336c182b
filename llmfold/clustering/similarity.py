"""Clustering of units that are given by their similarities only: a kernel, or distances that no rows stand behind."""

from torch import Tensor

from llmfold.clustering.cluster import Clustering, Method
from llmfold.clustering.gram import distance_from_gram
from llmfold.clustering.kmeans import hartigan, kmeans
from llmfold.clustering.partition import numbered_by_first_occurrence
from llmfold.clustering.quality import inertia, mst_bound
from llmfold.clustering.ward import ward


def cluster_gram(products: Tensor, k: int, *, method: Method, seed: int = 0) -> Clustering:
    """Partition n units into k clusters from their Gram (any positive semidefinite kernel).

    Args:
        products: n x n, float32 or float64; kept.
        k: clusters, from 1 to n.
        method: as of :func:`llmfold.clustering.cluster`.
        seed: of k-means++.

    Raises:
        ValueError: k outside 1..n, or a Gram that is not finite.
    """
    distances = distance_from_gram(products)
    return _cluster(products, distances, k, method, seed, mst_bound(distances, k))


def cluster_distances(distances: Tensor, k: int, *, method: Method, seed: int = 0) -> Clustering:
    """Partition n units into k clusters from squared distances that need not come from points in space.

    Ward works on the distances themselves; k-means on their double-centred Gram, which gives the same means' distances.
    The spanning-tree bound does not apply, so ``bound`` is None.

    Args:
        distances: n x n symmetric, nonnegative; kept.
        k: clusters, from 1 to n.
        method: as of :func:`llmfold.clustering.cluster`.
        seed: of k-means++.

    Raises:
        ValueError: k outside 1..n, or distances that are negative or not finite.
    """
    centred = distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()
    return _cluster(centred.mul_(-0.5), distances.clone(), k, method, seed, None)


def _cluster(products: Tensor, distances: Tensor, k: int, method: Method, seed: int, bound: float | None) -> Clustering:
    if method == "kmeans":
        labels = kmeans(products, k, seed=seed)
    else:
        dendrogram = ward(distances, k, overwrite=True)
        labels = dendrogram.labels(k)
        if method == "ward":
            return Clustering(numbered_by_first_occurrence(labels), k, float(dendrogram.costs.sum()), bound)
        labels = hartigan(products, labels, k)
    return Clustering(numbered_by_first_occurrence(labels.cpu()), k, max(inertia(products, labels), 0.0), bound)
