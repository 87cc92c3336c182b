"""How good a partition is: its inertia, and a lower bound no partition can beat."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmfold.clustering.blocks import Blocks, column_chunks, row_count, spans
from llmfold.clustering.gram import finite_norms
from llmfold.clustering.host import Array, host_matrix
from llmfold.clustering.partition import groups_by_size
from llmfold.clustering.spanning import spanning_edges

_WORK = 2**20
# Larger blocks are mapped anew for every tensor once freed memory goes back to the system at once.
_HOST_WORK = 2**17
_WIDTH = 256


def cluster_inertias(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the inertia of each cluster: float64, k, on the device of the Gram.

    It is the sum of pair distances over 2m, so a cluster of one (or of none) has exactly 0.
    """
    norms = finite_norms(gram).double()
    out = torch.zeros(k, dtype=torch.float64, device=gram.device)
    for clusters, members in groups_by_size(labels.to(gram.device), k):
        size = members.shape[1]
        if size == 1:
            continue
        rows, partners = members.flatten(), members.repeat_interleave(size, 0)
        sums = torch.empty_like(rows, dtype=torch.float64)
        for part in spans(len(rows), max(1, _WORK // size)):
            i, j = rows[part, None], partners[part]
            sums[part] = (norms[i] + norms[j] - 2 * gram[i, j].double()).sum(1)
        out[clusters] = sums.view(-1, size).sum(1) / (2 * size)
    return out


def inertia(gram: Tensor, labels: Tensor) -> float:
    """Return the sum of squared distances of rows to their cluster's mean, from the Gram, in float64.

    It is as accurate as the Gram: pairs nearer than about 1e-6 of their squared norms need :func:`inertia_of_rows`.

    Raises:
        ValueError: a Gram that is not square or not finite.
    """
    return float(cluster_inertias(gram, labels, int(labels.max()) + 1).sum())


def inertia_of_rows(blocks: Blocks, labels: Tensor) -> float:
    """Return the sum of squared distances of rows to their cluster's mean, from the rows, in float64.

    Args:
        blocks: matrices n x d_b.
        labels: int64, n, from 0 on.

    Raises:
        ValueError: unusable blocks.
    """
    return inertias_of_rows(blocks, [labels])[0]


def inertias_of_rows(blocks: Blocks, partitions: Sequence[Tensor]) -> list[float]:
    """:func:`inertia_of_rows` of several partitions, bit for bit; a cluster that some share is gone through once.

    Raises:
        ValueError: unusable blocks.
    """
    row_count(blocks)
    clusters: dict[int, list[tuple[int, Tensor]]] = {}
    for partition, labels in enumerate(partitions):
        for _, members in groups_by_size(labels.cpu(), int(labels.max()) + 1):
            clusters.setdefault(members.shape[1], []).append((partition, members))
    totals = [0.0] * len(partitions)
    for size in sorted(clusters.keys() - {1}):
        stacked = torch.cat([members for _, members in clusters[size]])
        distinct, places = torch.unique(stacked, dim=0, return_inverse=True)
        inertias = _row_inertias(blocks, distinct.to(blocks[0].device)).cpu()[places]
        parts = torch.split(inertias, [len(members) for _, members in clusters[size]])
        for (partition, _), part in zip(clusters[size], parts, strict=True):
            totals[partition] += float(part.sum())
    return totals


def _row_inertias(blocks: Blocks, members: Tensor) -> Tensor:
    """Inertia of each cluster of c x m members, float64; its sums do not depend on the clusters beside it."""
    size = members.shape[1]
    area = _WORK if members.is_cuda else _HOST_WORK
    width = max(_WIDTH, area // len(blocks[0]))
    step = max(1, area // (size * width))
    out = torch.zeros(len(members), dtype=torch.float64, device=members.device)
    # Rows are picked for several steps at once: columns of a transposed matrix come in whole cache lines.
    many = step * max(1, _WORK // (step * size * width))
    for targets, some in zip(torch.split(out, many), torch.split(members, many), strict=True):
        for chunk in column_chunks(blocks, width):
            picked = chunk.index_select(0, some.flatten()).view(*some.shape, -1)
            for target, part in zip(torch.split(targets, step), torch.split(picked, step), strict=True):
                x = part.double()
                target += x.sub_(x.mean(1, keepdim=True)).square_().sum(2).sum(1)
    return out


def mst_bound(distances: Tensor, k: int) -> float:
    """Return a lower bound on the inertia of every partition into k clusters of equally weighted rows.

    A cluster of m rows has inertia (sum of its pair distances) / m, at least half its minimum spanning tree, and the
    trees of k clusters together have n - k edges of a forest: half the n - k shortest edges of the whole tree. Prim's
    algorithm on the host, one pass over the matrix and O(n) memory; Borůvka's on CUDA.

    Args:
        distances: n x n symmetric squared distances, not yet overwritten by Ward.
        k: clusters.

    Raises:
        ValueError: k outside 1..n, or distances that are not finite.
    """
    if not 1 <= k <= len(distances):
        raise ValueError(f"k must be from 1 to {len(distances)}, got {k}")
    return forest_bound(mst_edges(distances), k)


def forest_bound(edges: Array, k: int) -> float:
    """The bound of :func:`mst_bound` from the n - 1 sorted edges of :func:`mst_edges`."""
    return float(edges[: len(edges) + 1 - k].sum()) / 2


def mst_edges(distances: Tensor) -> Array:
    """Return the n - 1 edges of the minimum spanning tree of n x n squared distances, ascending, float64.

    Raises:
        ValueError: distances that are not finite.
    """
    if distances.is_cuda:
        if not bool(distances.isfinite().all()):
            raise ValueError("squared distances must be finite")
        return spanning_edges(distances).double().cpu().numpy()
    matrix = host_matrix(distances)
    n = len(matrix)
    reach = matrix[0].copy()
    reached = np.zeros_like(reach)
    edges = np.empty(n - 1, np.float64)
    node = 0
    for edge in range(n - 1):
        reached[node] = np.inf
        np.minimum(reach, matrix[node], out=reach)
        open_reach = reach + reached
        node = int(open_reach.argmin())
        edges[edge] = open_reach[node]
    if not np.isfinite(edges).all():
        raise ValueError("squared distances must be finite")
    return np.sort(edges)
