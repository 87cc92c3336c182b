"""Refit of the final norm's gain, so that the folded model's next-token distributions meet the dense model's.

The mean KL divergence from the dense to the folded distribution is convex in the gain, d numbers in all. Newton steps
with the Hessian E[Wᵀ(diag q − q qᵀ)W] ∘ E[x xᵀ], a product of averages in the place of the average of products, lower
it; a step counts only if rows that it has not seen improve.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STEPS = 3
_RIDGE = 1e-3
_TOLERANCE = 1e-3


class Pair(NamedTuple):
    """Normalised states without a gain, (t, d) float32, of the folded and of the dense model."""

    folded: Tensor
    dense: Tensor


class Unembedding(Protocol):
    """See :class:`llmfold.methods.output.Output`."""

    def logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) of rows (t, d)."""

    def back(self, weights: Tensor) -> Tensor:
        """(t, d) of weights (t, vocabulary)."""

    def second_moment(self, weights: Tensor) -> Tensor:
        """(d, d) of weights (vocabulary,)."""


Loader = Callable[[], Iterator[Pair]]


class _Distributions(NamedTuple):
    dense: Tensor
    folded: Tensor
    divergence: float


def _distributions(pair: Pair, gain: Tensor, original: Tensor, output: Unembedding) -> _Distributions:
    p = output.logits(pair.dense * original).log_softmax(-1)
    q = output.logits(pair.folded * gain).log_softmax(-1)
    chances = p.exp()
    return _Distributions(chances, q.exp_(), float((chances * p.sub_(q.log())).double().sum()))


def divergence(gain: Tensor, original: Tensor, load: Loader, output: Unembedding) -> float:
    """Mean KL divergence in nats of the folded model with ``gain`` from the dense one with ``original``."""
    total = rows = 0.0
    for pair in load():
        total += _distributions(pair, gain, original, output).divergence
        rows += len(pair.folded)
    return total / rows


def refit_gain(gain: Tensor, output: Unembedding, train: Loader, held: Loader) -> tuple[Tensor, list[float]]:
    """Refit the final gain.

    Args:
        gain: (d,) float32 of the dense model, where it starts.
        output: the unembedding of both models.
        train: yields blocks of rows to fit on, anew at every call.
        held: the same for the rows held back, which decide whether a step counts.

    Returns:
        The gain, and mean held-back KL divergences in nats: before, then after each step that counted.
    """
    best, trace = gain, [divergence(gain, gain, held, output)]
    for _ in range(STEPS):
        step = _newton_step(best, gain, train, output)
        for length in (1.0, 0.5, 0.25):
            candidate = best - length * step
            found = divergence(candidate, gain, held, output)
            if found < trace[-1]:
                break
        else:
            break
        best, gained = candidate, trace[-1] - found
        trace.append(found)
        if gained < _TOLERANCE * found:
            break
    return best, trace


def _newton_step(gain: Tensor, original: Tensor, train: Loader, output: Unembedding) -> Tensor:
    d, device = len(gain), gain.device
    gradient = torch.zeros(d, dtype=torch.float64, device=device)
    inputs, means = (torch.zeros(d, d, dtype=torch.float64, device=device) for _ in range(2))
    chances: Tensor | float = 0.0
    rows = 0
    for pair in train():
        p, q, _ = _distributions(pair, gain, original, output)
        mean = output.back(q)
        gradient += ((mean - output.back(p)) * pair.folded).double().sum(0)
        inputs += (pair.folded.T @ pair.folded).double()
        means += (mean.T @ mean).double()
        chances = chances + q.double().sum(0)
        rows += len(mean)
    assert isinstance(chances, Tensor)
    curvature = (output.second_moment(chances / rows) - means / rows) * (inputs / rows)
    curvature.diagonal().add_(_RIDGE * curvature.diagonal().mean())
    step: Tensor = torch.linalg.solve(curvature, gradient / rows)
    return step.float()
