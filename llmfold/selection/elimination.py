"""Backward elimination on the inverse Gram: drop the unit whose loss, after all others are refit, is smallest.

This is optimal brain surgeon (Hassibi and Stork 1993) for whole units and the quadratic objective of
:mod:`llmfold.repair.least_squares`, where it is exact at every step: before anything goes the best consumer is the one
that is there, so nothing but the Gram and the consumer's rows is needed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfold.clustering.device import kernels_for
from llmfold.repair.least_squares import ActivationSums, cholesky, work_dtype

_DELAY = 64
_COMPACT = 8
"""Rows of units that are gone are cut away whenever they have become one in so many."""


@dataclass(frozen=True)
class Elimination:
    """Order in which units go.

    Attributes:
        kept: (k,) units that stay, ascending, on the CPU.
        removed: (n - k,) units in the order they went.
        costs: (n - k,) rise of the ridge objective by each, float64.
    """

    kept: Tensor
    removed: Tensor
    costs: Tensor

    @classmethod
    def of(cls, units: int, removed: Tensor, costs: Tensor) -> "Elimination":
        """What is left of ``units`` units."""
        alive = torch.ones(units, dtype=torch.bool)
        alive[removed] = False
        return cls(alive.nonzero().flatten(), removed, costs)


def eliminate_units(
    sums: ActivationSums, consumer: Tensor, keep: int, ridge: float, *, metric: Tensor | None = None
) -> Elimination:
    """Drop single units until ``keep`` are left.

    With P the inverse ridged Gram and W the current refit, unit i costs ``‖W_i‖² / P_ii``. Removing it downdates P and
    W Wᵀ by rank one; the updates are delayed and applied in blocks, so that a step reads O(n) numbers and the rest is
    matrix products. The first steps towards a smaller ``keep`` are those towards a larger one, bit for bit.

    Args:
        sums: over the activations of all n units.
        consumer: (n, d) rows that read them.
        keep: units to leave, from 1 to n.
        ridge: as a fraction of the mean diagonal of the Gram.
        metric: (d, m) linear map of the outputs whose squared norm is the loss; the identity if None.

    Raises:
        ValueError: ``keep`` outside 1..n.
    """
    n = len(sums.gram)
    if not 1 <= keep <= n:
        raise ValueError(f"keep must be from 1 to {n}, got {keep}")
    dtype = work_dtype(n)
    rows = consumer.to(sums.gram.device, dtype)
    if metric is not None:
        rows = rows @ metric.to(rows)
    inverse = torch.cholesky_inverse(cholesky(sums.gram.to(dtype), sums.penalty(ridge)))
    return Elimination.of(n, *downdate(inverse, rows @ rows.T, n - keep))


def downdate(inverse: Tensor, products: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Remove the cheapest unit ``steps`` times; both matrices are destroyed.

    On CUDA a Triton kernel takes each step, and the host waits once, at the end.

    Args:
        inverse: (n, n) P.
        products: (n, n) K = W Wᵀ.
        steps: units to remove, fewer than n.

    Returns:
        units in the order they went and their costs, (steps,) int64 and float64, on the CPU.
    """
    kernels = kernels_for(inverse, products, dtypes=(torch.float32, torch.float64))
    if kernels is None:
        return downdate_in_blocks(inverse, products, steps)
    removed, costs = kernels.eliminate(inverse, products, steps)
    return removed, costs.double().clamp_(min=0)


def downdate_in_blocks(inverse: Tensor, products: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """:func:`downdate` in torch, on any device."""
    state, removed, costs = _Delayed(inverse, products), list[int](), list[float]()
    for _ in range(steps):
        unit, cost = state.step()
        removed.append(unit)
        costs.append(cost)
    return torch.tensor(removed, dtype=torch.int64), torch.tensor(costs, dtype=torch.float64)


class _Delayed:
    """The inverse P and the products K = W Wᵀ, downdated by rank one with delay.

    With p = P_i / √P_ii, k = K_i / √P_ii and κ = K_ii / P_ii, removing unit i makes P ← P − p pᵀ and
    K ← K − p kᵀ − k pᵀ + κ p pᵀ.
    """

    def __init__(self, inverse: Tensor, products: Tensor) -> None:
        self._p, self._k = inverse, products
        self._p_diagonal, self._k_diagonal = inverse.diagonal().clone(), products.diagonal().clone()
        self._units = torch.arange(len(inverse))
        self._clear()

    def _clear(self) -> None:
        n = len(self._p)
        self._ps, self._ks = self._p.new_zeros(n, _DELAY), self._p.new_zeros(n, _DELAY)
        self._kappas = self._p.new_zeros(_DELAY)
        self._pending = 0
        self._gone = torch.zeros(n, dtype=torch.bool, device=self._p.device)

    def step(self) -> tuple[int, float]:
        """Remove the cheapest unit; returns it and its cost."""
        costs = torch.where(self._gone, math.inf, self._k_diagonal / self._p_diagonal)
        row = int(costs.argmin())
        removed, m = (int(self._units[row]), max(float(costs[row]), 0.0)), self._pending
        ps, ks, kappas = self._ps[:, :m], self._ks[:, :m], self._kappas[:m]
        p = self._p[row] - ps @ ps[row]
        k = self._k[row] - ps @ (ks[row] - kappas * ps[row]) - ks @ ps[row]
        pivot = max(float(p[row]), torch.finfo(p.dtype).tiny)
        root, kappa = pivot**0.5, float(k[row]) / pivot
        p, k = p / root, k / root
        self._ps[:, m], self._ks[:, m], self._kappas[m] = p, k, kappa
        self._p_diagonal -= p.square()
        self._k_diagonal -= p * (2 * k - kappa * p)
        self._gone[row] = True
        self._pending = m + 1
        if self._pending == _DELAY:
            self._flush()
        return removed

    def _flush(self) -> None:
        ps, ks = self._ps, self._ks - 0.5 * self._kappas * self._ps
        self._p.addmm_(ps, ps.T, alpha=-1)
        self._k.addmm_(ps, ks.T, alpha=-1)
        self._k.addmm_(ks, ps.T, alpha=-1)
        self._pending = 0
        if int(self._gone.sum()) * _COMPACT >= len(self._p):
            self._compact()

    def _compact(self) -> None:
        alive = (~self._gone).nonzero().flatten()
        self._p, self._k = self._p[alive][:, alive], self._k[alive][:, alive]
        self._p_diagonal, self._k_diagonal = self._p_diagonal[alive], self._k_diagonal[alive]
        self._units = self._units[alive.cpu()]
        self._clear()


def eliminate_blocks(sums: ActivationSums, consumer: Tensor, keep: int, size: int, ridge: float) -> Elimination:
    """Drop whole blocks of ``size`` neighbouring features (key/value groups with their heads) until ``keep`` are left.

    Block b costs ``tr(W_bᵀ (P_bb)⁻¹ W_b)``; arguments otherwise as of :func:`eliminate_units`, counted in blocks.
    """
    n = len(sums.gram)
    count = n // size
    if n % size or not 1 <= keep <= count:
        raise ValueError(f"keep must be from 1 to {count} blocks of {size} in {n}, got {keep}")
    p = torch.cholesky_inverse(cholesky(sums.gram.double(), sums.penalty(ridge)))
    w = consumer.to(p)
    spans = {b: slice(b * size, (b + 1) * size) for b in range(count)}
    removed, costs = [], []
    while len(spans) > keep:
        losses = {b: float((w[s] * torch.linalg.solve(p[s, s], w[s])).sum()) for b, s in spans.items()}
        worst = min(losses, key=losses.__getitem__)
        span = spans.pop(worst)
        columns = p[:, span].clone()
        step = torch.linalg.solve(p[span, span].clone(), torch.cat((columns.T, w[span]), 1))
        p -= columns @ step[:, :n]
        w = w - columns @ step[:, n:]
        removed.append(worst)
        costs.append(max(losses[worst], 0.0))
    return Elimination.of(count, torch.tensor(removed, dtype=torch.int64), torch.tensor(costs, dtype=torch.float64))
