"""Exact k-means from a Gram matrix: ++ seeding, Lloyd's and Hartigan's iterations."""

import math

import numpy as np
import torch
from torch import Tensor

from llmfold.clustering.blocks import spans
from llmfold.clustering.device import kernels_for
from llmfold.clustering.gram import finite_norms
from llmfold.clustering.host import host_matrix
from llmfold.clustering.partition import cluster_sizes, cluster_sums, groups_by_size
from llmfold.clustering.quality import cluster_inertias

# Columns scored at once: an area that stays in cache is several times faster than one of fresh pages.
_WORK = 2**20


def _check_k(gram: Tensor, k: int) -> None:
    if not 1 <= k <= len(gram):
        raise ValueError(f"k must be from 1 to {len(gram)}, got {k}")


def _noise(gram: Tensor, norms: Tensor) -> Tensor:
    """Change in squared distance (n) below which a move is rounding of the Gram and not an improvement."""
    return 16 * torch.finfo(gram.dtype).eps * norms


def kmeans_plus_plus(gram: Tensor, k: int, seed: int) -> Tensor:
    """Draw k distinct rows far apart by greedy k-means++ (Arthur and Vassilvitskii 2007; trials as in scikit-learn).

    Each step draws 2 + ln k rows with probability proportional to the squared distance from the rows taken so far and
    takes the one that leaves the least total. One trial a step is three times worse at k near n. Once every row left
    equals a taken one, the lowest rows left are taken.

    Args:
        gram: n x n, float32 or float64.
        k: seeds to draw.
        seed: of the CPU generator.

    Returns:
        int64, k, on the device of the Gram, in the order taken.

    Raises:
        ValueError: k outside 1..n, or a Gram that is not finite.
    """
    _check_k(gram, k)
    matrix, norms = host_matrix(gram), finite_norms(gram).cpu().numpy()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(k, 2 + int(math.log(k)), generator=generator, dtype=torch.float64).numpy()
    seeds = np.empty(k, np.int64)
    nearest = np.full_like(norms, np.inf)
    taken = np.zeros(len(norms), bool)
    for step, draw in enumerate(draws):
        weights = nearest if step else np.ones_like(norms)
        mass = weights.cumsum(dtype=np.float64)
        if mass[-1] > 0:
            # Strictly below the whole mass, whatever the rounding, so that a row of positive weight is found.
            points = np.minimum(draw * mass[-1], np.nextafter(mass[-1], 0))
            rows = np.sort(np.searchsorted(mass, points, side="right"))
        else:
            rows = taken.argmin(0, keepdims=True)
        left = matrix[rows]
        left *= -2
        left += norms
        left += norms[rows, None]
        np.clip(left, 0, nearest, out=left)
        best = int(left.sum(1).argmin())
        seeds[step] = rows[best]
        taken[rows[best]] = True
        nearest = left[best].copy()
        nearest[taken] = 0
    return torch.from_numpy(seeds).to(gram.device)


def _nearest_centre(
    gram: Tensor, labels: Tensor, k: int, groups: list[tuple[Tensor, Tensor]], offset: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Nearest centre of every row and its squared distance, staying at ``labels`` unless another is truly nearer.

    A centre c is given by its squared norm ``offset`` (k) and by 2 / |c| in ``scale`` (k) for the sum over its group.
    """
    norms = finite_norms(gram)
    noise = _noise(gram, norms)
    kernels = kernels_for(gram, offset, scale)
    if kernels is not None:
        best, least, current = kernels.nearest_centre(gram, kernels.from_groups(groups, k), offset, scale, labels)
        stays = current - least <= noise
        return torch.where(stays, labels, best), norms + torch.where(stays, current, least)
    nearest, distance = torch.empty_like(labels), torch.empty_like(norms)
    for part in spans(len(gram), max(1, _WORK // len(gram))):
        score = cluster_sums(gram[:, part], groups, k).mul_(-scale[:, None]).add_(offset[:, None])
        best = score.argmin(0, keepdim=True)
        least = score.gather(0, best).squeeze(0)
        current = score.gather(0, labels[part][None]).squeeze(0)
        stays = current - least <= noise[part]
        nearest[part] = torch.where(stays, labels[part], best.squeeze(0))
        distance[part] = norms[part] + torch.where(stays, current, least)
    return nearest, distance


def _fill_empty(labels: Tensor, distance: Tensor, k: int) -> Tensor:
    """Give each empty cluster the row farthest from its centre among clusters of two and more."""
    sizes = cluster_sizes(labels, k).tolist()
    empty = [cluster for cluster, size in enumerate(sizes) if size == 0]
    if not empty:
        return labels
    labels = labels.clone()
    cluster_of = labels.tolist()
    farthest = iter(distance.argsort(descending=True, stable=True).tolist())
    for cluster in empty:
        row = next(row for row in farthest if sizes[cluster_of[row]] > 1)
        sizes[cluster_of[row]] -= 1
        labels[row] = cluster
    return labels


def lloyd(gram: Tensor, labels: Tensor, k: int, max_iterations: int = 50) -> Tensor:
    """Move every row to its nearest mean until nothing moves (Lloyd 1982), with means kept as sums of Gram columns.

    dist(i, c) = S_ii - 2/|c| sum_{j in c} S_ij + 1/|c|^2 sum_{j, j' in c} S_jj'. A row moves only if that brings it
    nearer by more than the Gram's rounding; equal targets go to the lowest cluster. The work area is a few times 64 MB.

    Args:
        gram: n x n, float32 or float64.
        labels: int64, n, in 0..k-1; clusters may be empty.
        k: clusters.
        max_iterations: passes at most.

    Returns:
        int64, n, on the device of the Gram; no cluster is empty after one pass or more: an empty one takes the row
        farthest from its mean.

    Raises:
        ValueError: k outside 1..n, labels outside 0..k-1, or a Gram that is not finite.
    """
    _check_k(gram, k)
    labels = labels.to(gram.device)
    norms = finite_norms(gram)
    for _ in range(max_iterations):
        groups = list(groups_by_size(labels, k))
        sizes = cluster_sizes(labels, k).clamp(min=1).double()
        mean_norms = cluster_sums(norms.double()[:, None], groups, k).squeeze(1) / sizes
        offset = mean_norms - cluster_inertias(gram, labels, k) / sizes
        offset[cluster_sizes(labels, k) == 0] = torch.inf
        nearest, distance = _nearest_centre(gram, labels, k, groups, offset.to(gram.dtype), (2 / sizes).to(gram.dtype))
        moved = _fill_empty(nearest, distance, k)
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels


def hartigan(gram: Tensor, labels: Tensor, k: int, max_passes: int = 10) -> Tensor:
    """Move single rows to the cluster where the total inertia falls most, until no move helps (Hartigan 1975).

    Joining c adds |c|/(|c|+1) dist(i, c); leaving a frees |a|/(|a|-1) dist(i, a). Every candidate is judged in float64
    against the partition as it then is, in row order and O(n) memory, so the inertia never rises beyond the Gram's own
    rounding. A cluster of one keeps its row. Runs on the host, row by row.

    Args:
        gram: n x n, float32 or float64.
        labels: int64, n, every cluster 0..k-1 present.
        k: clusters.
        max_passes: passes over the rows at most.

    Returns:
        int64, n, on the device of the Gram.

    Raises:
        ValueError: k outside 1..n, an empty cluster, labels outside 0..k-1, or a Gram that is not finite.
    """
    _check_k(gram, k)
    sizes = cluster_sizes(labels, k).cpu().numpy()
    if not sizes.all():
        raise ValueError(f"Hartigan's method needs {k} non-empty clusters to start from")
    matrix, norms = host_matrix(gram), finite_norms(gram).double().cpu()
    squares, noise = norms.numpy(), _noise(gram, norms).numpy()
    within = cluster_inertias(gram, labels, k).cpu().numpy()
    clusters = labels.cpu().numpy().copy()
    for _ in range(max_passes):
        moved = False
        for row in np.flatnonzero(sizes[clusters] > 1).tolist():
            source = clusters[row]
            if sizes[source] == 1:
                continue
            distances = squares + squares[row] - 2.0 * matrix[row].astype(np.float64)
            excess = np.bincount(clusters, weights=distances, minlength=k) - within
            freed = excess[source] / (sizes[source] - 1)
            added = excess / (sizes + 1)
            added[source] = np.inf
            target = int(added.argmin())
            if freed - added[target] <= noise[row]:
                continue
            within[source] -= freed
            within[target] += added[target]
            sizes[source] -= 1
            sizes[target] += 1
            clusters[row] = target
            moved = True
        if not moved:
            break
    return torch.from_numpy(clusters).to(gram.device)


def kmeans(gram: Tensor, k: int, *, seed: int) -> Tensor:
    """Run k-means++ and then Lloyd.

    Returns:
        int64, n, on the device of the Gram, exactly k clusters.

    Raises:
        ValueError: k outside 1..n, or a Gram that is not finite.
    """
    seeds, device = kmeans_plus_plus(gram, k, seed), gram.device
    clusters = torch.arange(k, device=device)
    start = torch.zeros(len(gram), dtype=torch.int64, device=device)
    scale = torch.full((k,), 2.0, dtype=gram.dtype, device=device)
    labels, _ = _nearest_centre(gram, start, k, [(clusters, seeds[:, None])], gram.diagonal()[seeds], scale)
    # A row equal to an earlier seed must still found its own cluster.
    labels[seeds] = clusters
    return lloyd(gram, labels, k)
