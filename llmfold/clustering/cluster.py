"""Rows in, labels and a certificate out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmfold.clustering.blocks import Blocks, row_count
from llmfold.clustering.gram import gram, squared_distances
from llmfold.clustering.kmeans import hartigan, kmeans
from llmfold.clustering.partition import numbered_by_first_occurrence
from llmfold.clustering.quality import forest_bound, inertias_of_rows, mst_edges
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


Notify = Callable[[str], None]
"""Told the name of a stage when it ends."""


def _partitions(
    blocks: Blocks, ks: Sequence[int], method: Method, seed: int, certificate: bool, notify: Notify
) -> list[tuple[Tensor, float | None]]:
    """Labels and lower bound at every k below the number of rows."""
    products = gram(blocks, symmetric=method != "ward")
    notify("gram")
    if method == "kmeans":
        labels = [kmeans(products, k, seed=seed) for k in ks]
        notify("cluster")
        edges = mst_edges(squared_distances(blocks, products)) if certificate else None
        notify("bound")
    else:
        # Hartigan needs the Gram after Ward has destroyed the distances: the only method that holds two matrices.
        distances = squared_distances(blocks, products.clone() if method == "hartigan" else products)
        notify("distances")
        edges = mst_edges(distances) if certificate else None
        notify("bound")
        dendrogram = ward(distances, min(ks), overwrite=True)
        del distances
        labels = [dendrogram.labels(k) for k in ks]
        if method == "hartigan":
            labels = [hartigan(products, start, k) for start, k in zip(labels, ks, strict=True)]
        notify("cluster")
    return [(at_k, None if edges is None else forest_bound(edges, k)) for at_k, k in zip(labels, ks, strict=True)]


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
    return cluster_at(blocks, [k], method=method, seed=seed, certificate=certificate)[0]


def cluster_at(
    blocks: Blocks,
    ks: Sequence[int],
    *,
    method: Method,
    seed: int = 0,
    certificate: bool = True,
    notify: Notify = lambda stage: None,
) -> list[Clustering]:
    """:func:`cluster` at several k, bit for bit: one Gram matrix, one spanning tree and one dendrogram serve all.

    ``notify`` is told of the stages ``gram``, ``distances``, ``bound``, ``cluster`` and ``inertia``.
    """
    n = row_count(blocks)
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(f"k must be from 1 to {n}, got {k}")
    if method not in ("ward", "kmeans", "hartigan"):
        raise ValueError(f"method must be ward, kmeans or hartigan, got {method!r}")
    fewer = sorted({k for k in ks if k < n})
    partitions = _partitions(blocks, fewer, method, seed, certificate, notify) if fewer else []
    clusterings = {n: Clustering(torch.arange(n), n, 0.0, 0.0 if certificate else None)}
    numbered = [numbered_by_first_occurrence(labels.cpu()) for labels, _ in partitions]
    inertias = inertias_of_rows(blocks, numbered)
    notify("inertia")
    for k, labels, inertia, (_, bound) in zip(fewer, numbered, inertias, partitions, strict=True):
        clusterings[k] = Clustering(labels, k, inertia, bound)
    return [clusterings[k] for k in ks]
