"""How much the model's predictions care for each direction of the residual stream, layer by layer.

The measure is the Fisher information of the dense model's own next-token distribution in the states after a layer's
attention, and after the layer, averaged over tokens: F = E[g gᵀ], g the gradient of −log p(y) and y drawn from the
model itself. To second order an error e costs ½ eᵀFe of KL divergence (Amari 1998), so units are chosen by what their
loss does to predictions. The fit that follows needs no metric: least squares is best in every direction at once.

One pass forward and one back stream the layers of the dense model; between them the states wait on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmfold.data.tokens import TokenBudget
from llmfold.methods.base import ReadLayer
from llmfold.methods.dense import Measurement
from llmfold.methods.gradients import GradientPasses
from llmfold.methods.method import Notify
from llmfold.models import Role
from llmfold.planning.sensitivity import PARTS, Part
from llmfold.repair.least_squares import cholesky
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, stored_array
from llmfold.runtime.seeding import seeded
from llmfold.runtime.storage import fsync_path

if TYPE_CHECKING:
    from llmfold.models.context import Ends  # builds on transformers' models

TOKENS = 16_384
"""At most: a quadratic form of the residual stream needs fewer tokens than the Gram of a wide MLP."""
_FOLDER = f"{STATE_FOLDER}/importance"
_FLOOR = 0.01
"""Share of the mean eigenvalue added to all: what an average over tokens does not see still matters."""


def sequences_for(budget: TokenBudget) -> int:
    """How many of a budget's sequences the average runs over: half of them, and no more than ``TOKENS``."""
    return max(1, min(budget.sequences // 2, TOKENS // budget.length))


def metric_of(moment: Tensor) -> Tensor:
    """(d, d) float64 map R with R Rᵀ = F + a hundredth of mean diag F, for F (d, d)."""
    moment = moment.double()
    return cholesky(moment, _FLOOR * float(moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)))


@dataclass(frozen=True)
class Importance:
    """Metrics of the states after the attention and after the MLP of every layer, kept in the work folder.

    Attributes:
        measurement: what is measured on; its first sequences count.
        output: reads the end of the model.
        sequences: how many count.
        seed: of the labels drawn from the model.
    """

    measurement: Measurement
    output: Callable[[], "Ends"]
    sequences: int
    seed: int

    def ready(self, read_layer: ReadLayer, notify: Notify) -> None:
        """Compute all metrics where that has not been done yet; all processes call this alike.

        Args:
            read_layer: tensors of a layer by role.
            notify: told of every layer.
        """
        if (self.measurement.work / _FOLDER).exists():
            return
        folder = self.measurement.work / f"{_FOLDER}-partial"
        passes = GradientPasses(self.measurement, folder, self.sequences, read_layer, notify)
        self.measurement.team.with_oom_retry(partial(self._compute, passes, folder), CHUNK, "what directions matter")

    def metric(self, index: int, part: Part) -> Tensor:
        """(hidden, hidden) float64 on the CPU, see :func:`metric_of`, for the states that a layer's part adds to."""
        path = self.measurement.work / _FOLDER / _name(index, part)
        return metric_of(torch.from_numpy(np.load(path, allow_pickle=False)))

    def _compute(self, passes: GradientPasses, folder: Path, chunk: int) -> None:
        """Leave (d, d) float64 E[g gᵀ] of each layer's parts in a file each, ``chunk`` sequences at once."""
        team = self.measurement.team
        passes.forward("what directions matter, forward", chunk)
        passes.seed(self._label_gradients())  # by fixed blocks, whatever fits at once elsewhere
        for index, _, (squares,) in passes.backward("what directions matter, back", self._squares, chunk):
            if team.is_main:
                squares /= self.sequences * self.measurement.size[1]
                for part, moment in zip(PARTS, squares, strict=True):
                    stored_array(folder / _name(index, part), moment.cpu().numpy)
        if team.is_main:
            folder.rename(self.measurement.work / _FOLDER)
            fsync_path(folder.parent)
        team.wait()

    def _label_gradients(self) -> Callable[[Tensor, slice], Tensor]:
        """What gives the gradient in some states after the last layer, for labels drawn from the model itself."""
        output = self.output()

        def gradient(x: Tensor, part: slice) -> Tensor:
            return output.gradients(x.flatten(0, 1), seeded(self.seed, part.start)).view_as(x)

        return gradient

    def _squares(self, index: int, weights: dict[Role, Tensor], x: Tensor, behind: Tensor) -> tuple[Tensor, ...]:
        """Gradients before a layer, and (2, d, d) float64 sums of g gᵀ after both of its parts."""
        *entries, after = self.measurement.context.differentiable(x, weights, index)
        inner = [entry for entry in entries if entry is not None and entry is not after]
        before, *gradients = torch.autograd.grad(after, (x, *inner), behind)
        known = dict(zip(map(id, inner), gradients, strict=True))
        rows = (known.get(id(entry), behind).reshape(-1, behind.shape[-1]) for entry in entries)
        return before, torch.stack([each.T @ each for each in rows]).double()


def _name(index: int, part: Part) -> str:
    return f"{index:05d}-{part}.npy"
