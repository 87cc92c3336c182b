"""Clustering of units that are known by their distances only: their gauge depends on the pair, so no rows exist."""

from collections.abc import Sequence

from torch import Tensor

from llmfold.clustering.cluster import Clustering, Method
from llmfold.clustering.kmeans import hartigan, kmeans
from llmfold.clustering.partition import numbered_by_first_occurrence
from llmfold.clustering.quality import inertia
from llmfold.clustering.ward import ward


def cluster_distances(
    distances: Tensor, ks: Sequence[int], *, method: Method, seed: int = 0, overwrite: bool = False
) -> list[Clustering]:
    """Partition n units into k clusters, for every k, from squared distances that need not come from points in space.

    Ward works on the distances themselves; k-means and Hartigan on their double-centred Gram, whose distances to means
    are the same sums. The spanning-tree bound does not apply, so ``bound`` is None; ``inertia`` is Ward's own sum.

    Args:
        distances: n x n symmetric, nonnegative, zero diagonal.
        ks: numbers of clusters, from 1 to n; one dendrogram serves all.
        method: as of :func:`llmfold.clustering.cluster`.
        seed: of k-means++.
        overwrite: may destroy ``distances``.

    Raises:
        ValueError: k outside 1..n, an unknown method, or distances that are negative or not finite.
    """
    if method == "ward":
        dendrogram = ward(distances, min(ks), overwrite=overwrite)
        merges = [len(distances) - k for k in ks]
        return [
            Clustering(numbered_by_first_occurrence(dendrogram.labels(k)), k, float(dendrogram.costs[:m].sum()), None)
            for k, m in zip(ks, merges, strict=True)
        ]
    products = (distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()).mul_(-0.5)
    if method == "kmeans":
        partitions = [kmeans(products, k, seed=seed) for k in ks]
    elif method == "hartigan":
        dendrogram = ward(distances, min(ks), overwrite=overwrite)
        partitions = [hartigan(products, dendrogram.labels(k), k) for k in ks]
    else:
        raise ValueError(f"method must be ward, kmeans or hartigan, got {method!r}")
    return [
        Clustering(numbered_by_first_occurrence(labels.cpu()), k, max(inertia(products, labels), 0.0), None)
        for k, labels in zip(ks, partitions, strict=True)
    ]
