"""Refit of a layer's consumer in closed form, from nothing but the Gram matrix of the units' activations.

A layer is fitted alone, on the inputs that it has in the dense model, so what it should give is its own output: with
activations A (t, n), row weights w and consumer rows D (n, d), the target is A D. Over the consumer W (k, d) of the
units kept, S, the ridge objective pulls towards the rows that were there::

    Σ w ‖A D − A_S W‖² + λ ‖W − D_S‖²,  which is least at  W = D_S + (G_SS + λ I)⁻¹ G_SR D_R

with G = Aᵀ diag(w) A and R the units removed. Where little is known of a direction, a row stays as it was.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfold.errors import LlmfoldError

_ATTEMPTS = 8
WIDE = 4096
"""Above so many units arithmetic is float32: cubes in float64 take twice as long, and give the same with a ridge."""
PANEL = 2048
"""Columns of a Gram that are multiplied at once; what lies above the diagonal is mirrored, not multiplied."""


@dataclass(frozen=True)
class ActivationSums:
    """Weighted sums over rows of activations a, n wide, on their device.

    Attributes:
        gram: (n, n) float32 Σ w aᵀa.
        total: (n,) float64 Σ w a.
        weight: Σ w.
    """

    gram: Tensor
    total: Tensor
    weight: float

    def __add__(self, other: "ActivationSums") -> "ActivationSums":
        """Sums over the rows of both."""
        return ActivationSums(self.gram + other.gram, self.total + other.total, self.weight + other.weight)

    def scaled(self, factor: float) -> "ActivationSums":
        """The same with all row weights multiplied by a factor."""
        return ActivationSums(self.gram * factor, self.total * factor, self.weight * factor)

    def centred(self) -> "ActivationSums":
        """The same with the weighted mean taken out: what remains to be fitted once a bias is free."""
        gram = self.gram - torch.outer(self.total / self.weight, self.total).float()
        return ActivationSums(gram, torch.zeros_like(self.total), self.weight)

    @property
    def trace(self) -> float:
        """Of the Gram."""
        return float(self.gram.diagonal().double().sum())

    def penalty(self, ridge: float) -> float:
        """λ: ``ridge`` as a fraction of the mean diagonal of the Gram."""
        return max(ridge * float(self.gram.diagonal().double().mean()), torch.finfo(torch.float32).tiny)


def relative_error(wrong: float, whole: float) -> float:
    """Quotient of two sums of squares: zero where nothing is wrong, infinite where only nothing would be right."""
    if not whole:
        return math.inf if wrong else 0.0
    return wrong / whole


def activation_sums(blocks: Iterable[tuple[Tensor, Tensor]]) -> ActivationSums:
    """Sum over blocks of rows, in the order given.

    Args:
        blocks: activations (t, n) and row weights (t,), float32.

    Raises:
        ValueError: no blocks.
    """
    gram: Tensor | None = None
    for a, w in blocks:
        if gram is None:
            gram, total = a.new_zeros(a.shape[1], a.shape[1]), a.new_zeros(a.shape[1], dtype=torch.float64)
            weight = 0.0
        scaled = a * w.sqrt()[:, None]
        for start in range(0, len(gram), PANEL):
            panel = slice(start, min(start + PANEL, len(gram)))
            gram[panel, : panel.stop].addmm_(scaled[:, panel].T, scaled[:, : panel.stop])
        total += (a * w[:, None]).double().sum(0)
        weight += float(w.double().sum())
    if gram is None:
        raise ValueError("a Gram matrix needs at least one block of rows")
    for start in range(PANEL, len(gram), PANEL):
        panel = slice(start, min(start + PANEL, len(gram)))
        gram[:start, panel] = gram[panel, :start].T
    return ActivationSums(gram, total, weight)


@dataclass(frozen=True)
class ProductSums:
    """Weighted sums over rows of activations a, n wide, and of targets y, d wide, on their device.

    Attributes:
        activations: those of the activations alone.
        products: (n, d) float32 Σ w aᵀy.
    """

    activations: ActivationSums
    products: Tensor

    def __add__(self, other: "ProductSums") -> "ProductSums":
        """Sums over the rows of both."""
        return ProductSums(self.activations + other.activations, self.products + other.products)

    def added_rows(self, ridge: float) -> Tensor:
        """Rows (n, d) float32 to add to a consumer D, so that A D gives the targets beside what it gave.

        They are the W - D of least Σ w ‖A D + Y − A W‖² + λ ‖W − D‖², with λ a fraction ``ridge`` of the mean diagonal.
        """
        sums, dtype = self.activations, work_dtype(len(self.products))
        factor = cholesky(sums.gram.to(dtype), sums.penalty(ridge))
        return torch.cholesky_solve(self.products.to(dtype), factor).float()


def product_sums(blocks: Iterable[tuple[Tensor, Tensor, Tensor]]) -> ProductSums:
    """Sum over blocks of rows, in the order given.

    Args:
        blocks: activations (t, n), targets (t, d) and row weights (t,), float32.

    Raises:
        ValueError: no blocks.
    """
    products: list[Tensor] = []

    def multiplied() -> Iterator[tuple[Tensor, Tensor]]:
        for a, y, w in blocks:
            new = (a * w[:, None]).T @ y
            products[:] = [products[0] + new] if products else [new]
            yield a, w

    return ProductSums(activation_sums(multiplied()), *products)


def work_dtype(units: int) -> torch.dtype:
    """Dtype of factorisations of so many units; see ``WIDE``."""
    return torch.float32 if units > WIDE else torch.float64


def cholesky(gram: Tensor, penalty: float) -> Tensor:
    """Lower Cholesky factor of ``gram + penalty * I``; the penalty grows tenfold while rounding defeats it.

    Raises:
        LlmfoldError: no penalty helps, so the Gram is not one.
    """
    for _ in range(_ATTEMPTS):
        system = gram.clone()
        system.diagonal().add_(penalty)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(system)
        if not int(failed):
            return factor
        penalty *= 10
    raise LlmfoldError("the activations of a layer overflow or are NaN, so its repair cannot be solved")


def refit(sums: ActivationSums, consumer: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Rows of the consumer for the units that are kept; see the head of this module.

    Args:
        sums: over the activations of all n units; centred where the consumer's bias will be fitted too.
        consumer: (n, d) rows D.
        kept: (k,) units, ascending.
        ridge: λ as a fraction of the mean diagonal of the Gram.

    Returns:
        (k, d) float32 on the device of the Gram.
    """
    device = sums.gram.device
    gone = torch.ones(len(consumer), dtype=torch.bool)
    gone[kept.cpu()] = False
    kept, removed, rows = kept.to(device), gone.nonzero().flatten().to(device), consumer.to(device, torch.float32)
    if not len(removed):
        return rows[kept]
    dtype = work_dtype(len(consumer))
    factor = cholesky(sums.gram[kept][:, kept].to(dtype), sums.penalty(ridge))
    missing = (sums.gram[kept][:, removed] @ rows[removed]).to(dtype)
    return rows[kept] + torch.cholesky_solve(missing, factor).float()


def refit_bias(sums: ActivationSums, consumer: Tensor, kept: Tensor, refitted: Tensor, bias: Tensor) -> Tensor:
    """The consumer's bias (d,) float32 that makes the mean output what it was.

    Args:
        sums: over the activations of all units, not centred.
        consumer: (n, d) rows before.
        kept: (k,) units.
        refitted: (k, d) their rows now.
        bias: (d,) before.
    """
    mean = sums.total / sums.weight
    rows = consumer.to(mean)
    return (bias.to(mean) + mean @ rows - mean[kept.to(mean.device)] @ refitted.to(mean)).float()
