"""Exact greedy Ward clustering on one matrix of squared distances."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmfold.clustering.blocks import spans
from llmfold.clustering.device import kernels_for
from llmfold.clustering.host import Array, host_matrix
from llmfold.clustering.partition import numbered_by_first_occurrence

_REFUSED = "squared distances must be finite and nonnegative"


@dataclass(frozen=True, eq=False)
class Dendrogram:
    """The first m merges of n rows.

    Attributes:
        n: number of rows.
        pairs: int64, m x 2, in merge order: the lowest row of each of the two clusters merged, lower one first.
        costs: float64, m: the inertia each merge adds, in the unit of the squared distances.
    """

    n: int
    pairs: Tensor
    costs: Tensor

    def labels(self, k: int) -> Tensor:
        """Return int64 labels (n) of the cut into k clusters, numbered by first occurrence.

        Raises:
            ValueError: k outside n - m .. n.
        """
        if not self.n - len(self.pairs) <= k <= self.n:
            raise ValueError(f"k must be from {self.n - len(self.pairs)} to {self.n}, got {k}")
        parent = torch.arange(self.n)
        kept, absorbed = self.pairs[: self.n - k].unbind(1)
        parent[absorbed] = kept
        while not torch.equal(root := parent[parent], parent):
            parent = root
        return numbered_by_first_occurrence(parent)


class _Greedy:
    """Merge loop over a matrix of merge costs, which it destroys.

    Row i caches a lower bound on its costs to higher rows and the row that attains it (-1: only a bound). A merge never
    brings a third cluster closer (Ward is reducible), so a row that lost its neighbour keeps its bound and is searched
    again only when it comes up as the minimum. Only the merged cluster's row is written; its column, strided, is
    brought up to date in another row when that row is read.
    """

    def __init__(self, cost: Array) -> None:
        n = len(cost)
        self.cost, self.weights = cost, np.ones(n, cost.dtype)
        self.gone = np.zeros(n, cost.dtype)
        self.bound = np.full(n, np.inf, cost.dtype)
        self.neighbour = np.full(n, -1, np.int32)
        self.written = np.empty(n, np.int64)
        self.merges = 0
        self.current = np.zeros(n, np.int64)
        for row in range(n - 1):
            self._search(row, cost[row])

    def _row(self, row: int) -> Array:
        """Return row ``row`` with the entries of clusters merged since it was last read brought up to date."""
        recent = self.written[self.current[row] : self.merges]
        self.cost[row, recent] = self.cost[recent, row]
        self.current[row] = self.merges
        return np.asarray(self.cost[row])

    def _search(self, row: int, values: Array) -> None:
        candidates = values[row + 1 :] + self.gone[row + 1 :]
        nearest = int(candidates.argmin())
        self.bound[row] = candidates[nearest]
        self.neighbour[row] = row + 1 + nearest

    def _cheapest(self) -> int:
        while self.neighbour[row := int(self.bound.argmin())] < 0:
            self._search(row, self._row(row))
        return row

    def merge(self) -> tuple[int, int, float]:
        """Merge the cheapest pair, ties to the lowest rows, and return (lower row, higher row, cost)."""
        a = self._cheapest()
        b, price = int(self.neighbour[a]), self.bound[a]
        w, union = self.weights, self.weights[a] + self.weights[b]
        # Lance-Williams update of Ward's criterion, in merge costs.
        merged = (w + w[a]) * self._row(a)
        merged += (w + w[b]) * self._row(b)
        merged -= w * price
        merged /= w + union
        self.gone[b] = np.inf
        merged += self.gone
        merged[a] = np.inf
        self.cost[a] = merged
        w[a] = union
        self.written[self.merges] = a
        self.merges += 1
        self.current[a] = self.merges

        self.bound[b] = np.inf
        neighbour, bound = self.neighbour[:a], self.bound[:a]
        earlier = (merged[:a] == bound) & (neighbour > a)
        self.neighbour[(self.neighbour == a) | (self.neighbour == b)] = -1
        # Rounding alone can put a new cost below a bound.
        closer = (merged[:a] < bound) | earlier
        if closer.any():
            bound[closer] = merged[:a][closer]
            neighbour[closer] = a
        self._search(a, merged)
        return a, b, float(price)


def ward(distances: Tensor, k: int, *, overwrite: bool = False) -> Dendrogram:
    """Merge the pair that adds least inertia until k clusters are left (Ward 1963, Lance and Williams 1967).

    Joining clusters a and b of m_a and m_b rows adds m_a m_b / (m_a + m_b) times the squared distance of their means.
    Equal costs go to the lowest rows. Each merge is a few passes over one row: on the host, or for float32 on CUDA in
    a Triton kernel that does all merges in one launch.

    Args:
        distances: n x n symmetric squared distances, floating point; float16 and bfloat16 are widened.
        k: clusters to leave.
        overwrite: may destroy ``distances`` instead of copying it (float32 or float64).

    Raises:
        ValueError: k outside 1..n, or distances that are negative or not finite.
    """
    n, kernels = len(distances), kernels_for(distances)
    if kernels is not None and distances.dtype == torch.float32 and distances.shape == (n, n) and 1 <= k <= n:
        in_place = overwrite and distances.is_contiguous()
        costs = distances if in_place else distances.clone(memory_format=torch.contiguous_format)
        costs *= 0.5
        if not (float(costs.min()) >= 0 and math.isfinite(float(costs.max()))):
            raise ValueError(_REFUSED)
        pairs, costs = kernels.merge_greedily(costs, torch.ones(n, device=costs.device), n - k)
        return Dendrogram(n, pairs, costs.double())
    matrix = host_matrix(distances)
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}, got {k}")
    if not overwrite:
        matrix = matrix.copy()
    for rows in spans(n, max(1, 2**22 // n)):
        matrix[rows] *= 0.5
        if not (matrix[rows].min() >= 0 and matrix[rows].max() < np.inf):
            raise ValueError(_REFUSED)
    greedy = _Greedy(matrix)
    merges = [greedy.merge() for _ in range(n - k)]
    pairs = torch.tensor([merge[:2] for merge in merges], dtype=torch.int64).view(-1, 2)
    return Dendrogram(n, pairs, torch.tensor([merge[2] for merge in merges], dtype=torch.float64))
