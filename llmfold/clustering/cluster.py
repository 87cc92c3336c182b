"""Rows in, labels and a certificate out."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmfold.clustering.blocks import Blocks, row_count
from llmfold.clustering.gram import gram, squared_distances
from llmfold.clustering.kmeans import hartigan, kmeans
from llmfold.clustering.partition import numbered_by_first_occurrence
from llmfold.clustering.quality import inertia_of_rows, mst_bound
from llmfold.clustering.ward import ward

Method = Literal["ward", "kmeans", "hartigan"]


@dataclass(frozen=True, eq=False)
class Clustering:
    """A partition of n rows into k clusters.

    Attributes:
        labels: int64, n, on the CPU, numbered by first occurrence.
        k: number of clusters, none empty.
        inertia: sum of squared distances of rows to their cluster's mean, from the rows, in float64.
        bound: lower bound on the inertia of any k clusters, or None if it was not asked for.
    """

    labels: Tensor
    k: int
    inertia: float
    bound: float | None

    @property
    def sizes(self) -> Tensor:
        """Rows per cluster: int64, k."""
        return torch.bincount(self.labels, minlength=self.k)

    @property
    def ratio_to_bound(self) -> float | None:
        """Inertia over its lower bound: 1 is optimal; None without a bound."""
        if self.bound is None:
            return None
        if self.bound == 0:
            return 1.0 if self.inertia == 0 else math.inf
        return self.inertia / self.bound


def _partition(blocks: Blocks, k: int, method: Method, seed: int, certificate: bool) -> tuple[Tensor, float | None]:
    products = gram(blocks, symmetric=method != "ward")
    if method == "kmeans":
        labels = kmeans(products, k, seed=seed)
        return labels, mst_bound(squared_distances(blocks, products), k) if certificate else None
    # Hartigan needs the Gram after Ward has destroyed the distances: the only method that holds two matrices.
    distances = squared_distances(blocks, products.clone() if method == "hartigan" else products)
    bound = mst_bound(distances, k) if certificate else None
    labels = ward(distances, k, overwrite=True).labels(k)
    del distances
    return (hartigan(products, labels, k) if method == "hartigan" else labels), bound


def cluster(blocks: Blocks, k: int, *, method: Method, seed: int = 0, certificate: bool = True) -> Clustering:
    """Partition rows into k clusters of small inertia, by way of their n x n Gram matrix.

    One n x n matrix is held (two for "hartigan"), 4 bytes an entry (8 for float64 input), and about 200 MB beside it.

    Args:
        blocks: matrices n x d_b (bf16, fp16, fp32 or fp64; any strides), their columns taken together.
        k: clusters, from 1 to n.
        method: "ward"; "hartigan" (Ward, then Hartigan's moves); "kmeans" (k-means++, then Lloyd).
        seed: of k-means++; the others draw nothing.
        certificate: compute the minimum spanning tree bound.

    Raises:
        ValueError: k outside 1..n, an unknown method, unusable blocks, or rows that are not finite.
    """
    n = row_count(blocks)
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}, got {k}")
    if method not in ("ward", "kmeans", "hartigan"):
        raise ValueError(f"method must be ward, kmeans or hartigan, got {method!r}")
    if k == n:
        return Clustering(torch.arange(n), k, 0.0, 0.0 if certificate else None)
    found, bound = _partition(blocks, k, method, seed, certificate)
    labels = numbered_by_first_occurrence(found.cpu())
    return Clustering(labels, k, inertia_of_rows(blocks, labels), bound)
