"""Clustering of units that are known by their distances only: their gauge depends on the pair, so no rows exist."""

from torch import Tensor

from llmfold.clustering.cluster import Clustering, Method
from llmfold.clustering.kmeans import hartigan, kmeans
from llmfold.clustering.partition import numbered_by_first_occurrence
from llmfold.clustering.quality import inertia
from llmfold.clustering.ward import ward


def cluster_distances(
    distances: Tensor, k: int, *, method: Method, seed: int = 0, overwrite: bool = False
) -> Clustering:
    """Partition n units into k clusters from squared distances that need not come from points in space.

    Ward works on the distances themselves; k-means and Hartigan on their double-centred Gram, whose distances to means
    are the same sums. The spanning-tree bound does not apply, so ``bound`` is None; ``inertia`` is Ward's own sum.

    Args:
        distances: n x n symmetric, nonnegative, zero diagonal.
        k: clusters, from 1 to n.
        method: as of :func:`llmfold.clustering.cluster`.
        seed: of k-means++.
        overwrite: may destroy ``distances``.

    Raises:
        ValueError: k outside 1..n, an unknown method, or distances that are negative or not finite.
    """
    if method == "ward":
        dendrogram = ward(distances, k, overwrite=overwrite)
        return Clustering(numbered_by_first_occurrence(dendrogram.labels(k)), k, float(dendrogram.costs.sum()), None)
    products = (distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()).mul_(-0.5)
    if method == "kmeans":
        labels = kmeans(products, k, seed=seed)
    elif method == "hartigan":
        labels = hartigan(products, ward(distances, k, overwrite=overwrite).labels(k), k)
    else:
        raise ValueError(f"method must be ward, kmeans or hartigan, got {method!r}")
    return Clustering(numbered_by_first_occurrence(labels.cpu()), k, max(inertia(products, labels), 0.0), None)
