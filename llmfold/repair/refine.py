"""Refinement of a narrowed MLP by gradient steps, so that it gives what the dense one gives on the same inputs.

Block reconstruction as in post-training quantisation (Nagel et al., AdaRound, ICML 2020; Li et al., BRECQ, ICLR 2021):
Adam (Kingma and Ba 2015) on producers and consumer of one MLP, on random rows, with steps that shrink to nothing. No
label, no other layer and no loss of the model is involved. The closed form is where it starts, and rows that it has
not seen decide whether it counts, and whether all of the way or half of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llmfold.models import Role
from llmfold.repair.least_squares import relative_error

Mlp = dict[Role, Tensor]
"""Tensors of an MLP by role, float32."""
_WAYS = 1.0, 0.5
"""Shares of the way that are judged: half of it keeps a quarter of the noise and, of a small gain, three quarters."""


class MlpSamples(Protocol):
    """What a dense MLP was given and what it made of it."""

    @property
    def tokens(self) -> int:
        """Rows of a sequence."""

    def mlp(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (t, hidden), outputs (t, hidden) and row weights (t,) of some sequences."""

    def mlp_rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The same for single rows by their number in all sequences."""

    def mlp_output(self, x: Tensor, mlp: Mlp) -> Tensor:
        """Outputs (t, hidden) of an MLP of the same kind."""


@dataclass(frozen=True)
class Refinement:
    """Settings of the refinement.

    Attributes:
        steps: gradient steps.
        batch: rows in each.
        rate: of the first step, as a fraction of each tensor's root mean square; it falls to zero linearly.
        metric: (hidden, m) map of outputs whose squared norm is descended; the identity if None.
    """

    steps: int = 0
    batch: int = 512
    rate: float = 1e-2
    metric: Tensor | None = None

    def energy(self, outputs: Tensor) -> Tensor:
        """(t,) squared norms of outputs (t, hidden) in the metric."""
        return (outputs if self.metric is None else outputs @ self.metric).square().sum(1)


def refine(
    mlp: Mlp, inputs: MlpSamples, train: Sequence[slice], held: Sequence[slice], settings: Refinement, seed: int
) -> tuple[Mlp, list[float]]:
    """Refine an MLP against the dense one of its layer.

    Args:
        mlp: where to start; nothing of it may be fitted to the rows held back, or the comparison would favour it.
        inputs: of the dense MLP, with its outputs.
        train: sequences to fit on; rows are drawn from them at random.
        held: sequences that decide how far it goes, and whether it counts.
        settings: see :class:`Refinement`.
        seed: of the rows drawn.

    Returns:
        The refined MLP, all of the way or half of it, and relative squared errors on the rows held back: before, and
        after.
    """
    refined = _descended(mlp, inputs, train, settings, seed)
    ways = [{role: mlp[role].lerp(tensor, way) for role, tensor in refined.items()} for way in _WAYS]
    before, *errors = (held_error(each, inputs, held, settings) for each in (mlp, *ways))
    after = min(errors)
    return ways[errors.index(after)], [before, after]


def _descended(mlp: Mlp, inputs: MlpSamples, train: Sequence[slice], settings: Refinement, seed: int) -> Mlp:
    """The MLP after all steps; gradients and moments are gone when it returns."""
    first, last = train[0].start * inputs.tokens, train[-1].stop * inputs.tokens
    generator = torch.Generator().manual_seed(seed)
    refined = {role: tensor.clone().requires_grad_() for role, tensor in mlp.items()}
    rates = [settings.rate * float(t.detach().square().mean().sqrt().clamp_min(1e-12)) for t in refined.values()]
    groups = [{"params": [t], "lr": rate} for t, rate in zip(refined.values(), rates, strict=True)]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98), eps=1e-12, foreach=False)
    with torch.enable_grad():
        for step in range(settings.steps):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / settings.steps)
            rows = torch.randint(first, last, (settings.batch,), generator=generator).sort().values
            x, y, w = inputs.mlp_rows(rows.numpy())
            rest = settings.energy(y - inputs.mlp_output(x, refined))
            loss = (rest * w).sum() / (settings.energy(y) * w).sum().clamp_min(1e-30)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    optimiser.zero_grad()
    optimiser.state.clear()  # the optimiser is in a cycle, and would hold them until garbage is collected
    return {role: tensor.detach() for role, tensor in refined.items()}


def held_error(mlp: Mlp, inputs: MlpSamples, parts: Sequence[slice], settings: Refinement = Refinement()) -> float:
    """Relative squared error of an MLP on some sequences."""
    wrong = total = 0.0
    for x, y, w in map(inputs.mlp, parts):
        wrong += float((settings.energy(y - inputs.mlp_output(x, mlp)) * w).double().sum())
        total += float((settings.energy(y) * w).double().sum())
    return relative_error(wrong, total)
