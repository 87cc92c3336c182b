"""Exact greedy Ward clustering on one matrix of squared distances."""

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from llmfold.clustering.device import kernels_for
from llmfold.clustering.host import Array, host_matrix
from llmfold.clustering.partition import numbered_by_first_occurrence

_DEVICE_ROWS = 1024


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

    def __init__(self, cost: Array, weights: Array) -> None:
        n = len(cost)
        self.cost, self.weights = cost, weights
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


def _to_costs(matrix: Array, weights: Array | None) -> None:
    """Scale squared distances in place by w_a w_b / (w_a + w_b), and refuse what is not finite and nonnegative."""
    rows = max(1, 2**22 // len(matrix))
    for start in range(0, len(matrix), rows):
        part = matrix[start : start + rows]
        if weights is None:
            part *= 0.5
        else:
            own = weights[start : start + rows, None]
            part *= own * (weights / (own + weights))
        if not (part.min() >= 0 and part.max() < np.inf):
            raise ValueError("squared distances must be finite and nonnegative")


def _on_device(
    kernels: ModuleType, distances: Tensor, merges: int, weights: Tensor | None, overwrite: bool
) -> tuple[Tensor, Tensor]:
    """All merges in one launch; returns pairs and costs."""
    masses = torch.ones(len(distances)) if weights is None else weights.detach()
    masses = masses.to(distances.device, torch.float32, copy=True)
    if masses.shape != (len(distances),) or not bool(((masses > 0) & masses.isfinite()).all()):
        raise ValueError(f"weights must be {len(distances)} positive finite numbers")
    in_place = overwrite and distances.is_contiguous()
    costs = distances if in_place else distances.clone(memory_format=torch.contiguous_format)
    for start in range(0, len(costs), _DEVICE_ROWS):
        own = masses[start : start + _DEVICE_ROWS, None]
        costs[start : start + _DEVICE_ROWS] *= own * masses / (own + masses)
    if not (float(costs.min()) >= 0 and math.isfinite(float(costs.max()))):
        raise ValueError("squared distances must be finite and nonnegative")
    found: tuple[Tensor, Tensor] = kernels.merge_greedily(costs, masses, merges)
    return found


def ward(distances: Tensor, k: int, *, weights: Tensor | None = None, overwrite: bool = False) -> Dendrogram:
    """Merge the pair that adds least inertia until k clusters are left (Ward 1963, Lance and Williams 1967).

    Joining clusters a and b of weights w adds w_a w_b / (w_a + w_b) times the squared distance of their means. Equal
    costs go to the lowest rows. Each merge is a few passes over one row: on the host, or for float32 on CUDA in a
    Triton kernel that does all merges in one launch.

    Args:
        distances: n x n symmetric squared distances, floating point; float16 and bfloat16 are widened.
        k: clusters to leave.
        weights: n positive masses; 1 each when left out.
        overwrite: may destroy ``distances`` instead of copying it (float32 or float64).

    Raises:
        ValueError: k outside 1..n, distances that are negative or not finite, weights that are not positive and finite.
    """
    n, kernels = len(distances), kernels_for(distances)
    if kernels is not None and distances.dtype == torch.float32 and distances.shape == (n, n) and 1 <= k <= n:
        pairs, costs = _on_device(kernels, distances, n - k, weights, overwrite)
        return Dendrogram(n=n, pairs=pairs, costs=costs.double())
    matrix = host_matrix(distances)
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}, got {k}")
    if not overwrite:
        matrix = matrix.copy()
    masses = None if weights is None else weights.detach().to("cpu", torch.float64).numpy().astype(matrix.dtype)
    if masses is not None and (masses.shape != (n,) or not (masses.min() > 0 and masses.max() < np.inf)):
        raise ValueError(f"weights must be {n} positive finite numbers")
    _to_costs(matrix, masses)
    greedy = _Greedy(matrix, np.ones(n, matrix.dtype) if masses is None else masses)
    merges = [greedy.merge() for _ in range(n - k)]
    return Dendrogram(
        n=n,
        pairs=torch.tensor([merge[:2] for merge in merges], dtype=torch.int64).view(-1, 2),
        costs=torch.tensor([merge[2] for merge in merges], dtype=torch.float64),
    )
