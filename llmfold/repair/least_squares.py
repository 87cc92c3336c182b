"""Ridge least squares from accumulated Gram matrices: the consumer of a layer's units, refit in closed form."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmfold.errors import LlmfoldError

_ATTEMPTS = 8


class Products(NamedTuple):
    """What a block of rows adds to :class:`NormalEquations`; gram and cross are float32, the others float64."""

    gram: Tensor
    cross: Tensor
    energy: Tensor
    feature_sum: Tensor
    target_sum: Tensor
    weight: Tensor


@dataclass(frozen=True)
class NormalEquations:
    """Weighted sums over rows of features ``a`` (n wide) and targets ``y`` (d wide).

    All float64, on the device of the features.

    Attributes:
        gram: (n, n) Σ w aᵀa.
        cross: (n, d) Σ w aᵀy.
        energy: Σ w ‖y‖².
        feature_sum: (n,) Σ w a.
        target_sum: (d,) Σ w y.
        weight: Σ w.
    """

    gram: Tensor
    cross: Tensor
    energy: float
    feature_sum: Tensor
    target_sum: Tensor
    weight: float

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.feature_sum + other.feature_sum,
            self.target_sum + other.target_sum,
            self.weight + other.weight,
        )

    def scaled(self, factor: float) -> "NormalEquations":
        """The same with all row weights multiplied by a factor."""
        return NormalEquations(
            self.gram * factor,
            self.cross * factor,
            self.energy * factor,
            self.feature_sum * factor,
            self.target_sum * factor,
            self.weight * factor,
        )

    def centred(self) -> "NormalEquations":
        """The same with weighted means taken out of features and targets: what remains once a bias is free."""
        a, y = self.feature_sum / self.weight, self.target_sum / self.weight
        return NormalEquations(
            self.gram - torch.outer(a, self.feature_sum),
            self.cross - torch.outer(a, self.target_sum),
            self.energy - float(y @ self.target_sum),
            torch.zeros_like(a),
            torch.zeros_like(y),
            self.weight,
        )

    def restricted(self, units: Tensor) -> "NormalEquations":
        """The same for some of the features only."""
        units = units.to(self.gram.device)
        return NormalEquations(
            self.gram[units][:, units],
            self.cross[units],
            self.energy,
            self.feature_sum[units],
            self.target_sum,
            self.weight,
        )

    @property
    def trace(self) -> float:
        """Trace of the Gram."""
        return float(self.gram.diagonal().sum())

    def ridge(self, fraction: float) -> float:
        """Ridge term: ``fraction`` of the mean diagonal of the Gram."""
        return max(fraction * float(self.gram.diagonal().mean()), torch.finfo(torch.float64).tiny)

    def error(self, weights: Tensor, bias: Tensor | None = None) -> float:
        """Relative squared error of predicting targets by ``weights`` (n, d) and ``bias`` (d,)."""
        w = weights.to(self.gram)
        squared = self.energy - 2 * float((w * self.cross).sum()) + float((w * (self.gram @ w)).sum())
        if bias is not None:
            b = bias.to(self.gram)
            squared += self.weight * float(b @ b) + 2 * float(b @ (self.feature_sum @ w - self.target_sum))
        return max(squared, 0.0) / max(self.energy, torch.finfo(torch.float64).tiny)


def products(a: Tensor, y: Tensor, w: Tensor) -> Products:
    """Products of features (t, n), targets (t, d) and row weights (t,), float32."""
    weighted = a * w[:, None]
    return Products(
        weighted.T @ a,
        weighted.T @ y,
        (y.double().square().sum(1) * w).sum(),
        weighted.double().sum(0),
        (y * w[:, None]).double().sum(0),
        w.double().sum(),
    )


def accumulate(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> NormalEquations:
    """Sum normal equations over blocks of rows (see :func:`products`), in the order given.

    Raises:
        ValueError: no blocks.
    """
    return summed(products(*part) for part in parts)


def summed(parts: Iterable[tuple[Tensor, ...]]) -> NormalEquations:
    """Sum the :class:`Products` of blocks in float64, in the order given.

    Raises:
        ValueError: no blocks.
    """
    total: list[Tensor] = []
    for part in parts:
        if total:
            for known, more in zip(total, part, strict=True):
                known.add_(more)
        else:
            total = [tensor.double() for tensor in part]
    if not total:
        raise ValueError("normal equations need at least one block of rows")
    gram, cross, energy, features, targets, weight = total
    return NormalEquations(gram, cross, float(energy), features, targets, float(weight))


def cholesky(gram: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of ``gram + ridge * I``; the ridge grows tenfold while rounding defeats it.

    Raises:
        LlmfoldError: no ridge helps, so the Gram is not one.
    """
    for _ in range(_ATTEMPTS):
        system = gram.clone()
        system.diagonal().add_(ridge)
        found = torch.linalg.cholesky_ex(system)
        if not int(found.info):
            factor: Tensor = found.L
            return factor
        ridge *= 10
    raise LlmfoldError("the activations of a layer overflow or are NaN, so its repair cannot be solved")


def solve(equations: NormalEquations, fraction: float, *, bias: bool = False) -> tuple[Tensor, Tensor | None]:
    """Minimise ``Σ w ‖y − Wᵀa − b‖² + λ ‖W‖²`` with λ the ridge of :meth:`NormalEquations.ridge`.

    Args:
        equations: over the units that are kept.
        fraction: ridge as a fraction of the mean diagonal.
        bias: whether the consumer has a bias to fit.

    Returns:
        W (n, d) and b (d,) or None, float64.
    """
    system = equations.centred() if bias else equations
    weights = torch.cholesky_solve(system.cross, cholesky(system.gram, equations.ridge(fraction)))
    if not bias:
        return weights, None
    return weights, (equations.target_sum - equations.feature_sum @ weights) / equations.weight
