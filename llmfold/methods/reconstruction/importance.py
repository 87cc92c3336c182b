"""How much the model's predictions care for each direction of the residual stream, layer by layer.

The measure is the Fisher information of the dense model's own next-token distribution in the states after a layer's
attention, and after the layer, averaged over tokens: F = E[g gᵀ], g the gradient of −log p(y) and y drawn from the
model itself. To second order an error e costs ½ eᵀFe of KL divergence (Amari 1998), so units are chosen by what their
loss does to predictions. The fit that follows needs no metric: least squares is best in every direction at once.

One pass forward and one back stream the layers of the dense model; between them the states wait on disk.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llmfold.data.tokens import TokenBudget
from llmfold.methods.base import ReadLayer, Weights
from llmfold.methods.dense import Measurement
from llmfold.models.forward import attention_block, decoder_layer, mlp_block
from llmfold.models.unembedding import LMHead
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, chunks, mapped, read, stored_array, write
from llmfold.runtime.storage import fsync_path

Part = Literal["heads", "neurons"]
PARTS: tuple[Part, ...] = get_args(Part)
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
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    factor: Tensor = torch.linalg.cholesky(moment + _FLOOR * mean * torch.eye(len(moment), dtype=torch.float64))
    return factor


@dataclass(frozen=True)
class Importance:
    """Metrics of the states after the attention and after the MLP of every layer, kept in the work folder.

    Attributes:
        on: what is measured on; its first sequences count.
        output: reads the end of the model.
        sequences: how many count.
        seed: of the labels drawn from the model.
    """

    on: Measurement
    output: Callable[[], LMHead]
    sequences: int
    seed: int

    def ready(self, read_layer: ReadLayer, say: Callable[[str], None]) -> None:
        """Compute all metrics where that has not been done yet; all processes call this alike.

        Args:
            read_layer: tensors of a layer by role.
            say: told of every layer.
        """
        if not (self.on.work / _FOLDER).exists():
            self.on.team.with_oom_retry(_Passes(self, read_layer, say).compute, CHUNK, "what directions matter")

    def metric(self, index: int, part: Part) -> Tensor:
        """(hidden, hidden) float64 on the CPU, see :func:`metric_of`, for the states that a layer's part adds to."""
        return metric_of(torch.from_numpy(np.load(self.on.work / _FOLDER / _name(index, part), allow_pickle=False)))


class _Passes:
    """The pass forward and the pass back."""

    def __init__(self, of: Importance, read_layer: ReadLayer, say: Callable[[str], None]) -> None:
        self._on, self._of, self._read_layer, self._say = of.on, of, read_layer, say
        self._layers = len(of.on.shape.layers)
        self._unfinished = of.on.work / f"{_FOLDER}-partial"

    def compute(self, chunk: int) -> None:
        """Leave a file for every layer; ``chunk`` sequences at once."""
        on, size = self._on, (self._of.sequences, self._on.size[1], self._on.shape.hidden)
        parts = list(chunks(self._of.sequences, chunk))

        def create(first: bool) -> list[np.memmap]:
            if first:
                shutil.rmtree(self._unfinished, ignore_errors=True)
                self._unfinished.mkdir(parents=True)
            paths = [self._unfinished / f"states-{i}.npy" for i in range(self._layers + 1)]
            return [mapped(path, size if first else None) for path in paths]

        states = on.team.create_or_open(create)
        self._forward(states, parts)
        self._backward(states, parts)
        if on.team.is_main:
            (self._unfinished / "states-0.npy").unlink()
            self._unfinished.rename(on.work / _FOLDER)
            fsync_path((on.work / _FOLDER).parent)
        on.team.wait()

    def _forward(self, states: list[np.memmap], parts: list[slice]) -> None:
        """Fill the states before every layer, and after the last."""
        on = self._on
        if on.team.is_main:
            for part, hidden in zip(chunks(self._of.sequences), on.start(), strict=False):
                write(states[0], part, hidden[: part.stop - part.start])
        on.team.wait()
        for index in range(self._layers):
            self._say(f"layer {index}: what directions matter, forward")
            on.team.each(parts, partial(self._through, index, on.wide(self._read_layer(index)), states))

    def _through(self, index: int, weights: Weights, states: list[np.memmap], part: slice) -> None:
        x = read(states[index], part, self._on.device)
        context = self._on.stream.context
        write(states[index + 1], part, decoder_layer(x, weights, self._on.shape.layers[index], context, index))

    def _backward(self, states: list[np.memmap], parts: list[slice]) -> None:
        """Store (d, d) float64 E[g gᵀ] of each layer's parts, the last first; gradients replace the states."""
        on, output = self._on, self._of.output()
        labelled = list(chunks(self._of.sequences))  # whatever fits at once elsewhere: labels are drawn by block
        on.team.each(labelled, partial(self._at_the_end, output, states[-1]))
        del output
        for index in reversed(range(self._layers)):
            self._say(f"layer {index}: what directions matter, back")
            moments = torch.zeros(len(PARTS), on.shape.hidden, on.shape.hidden, dtype=torch.float64, device=on.device)
            back = partial(self._back, index, on.wide(self._read_layer(index)), states)
            for (squares,) in on.team.map_in_order(parts, back):
                moments += squares
            if on.team.is_main:
                moments /= self._of.sequences * on.size[1]
                for part, mean in zip(PARTS, moments, strict=True):
                    stored_array(self._unfinished / _name(index, part), mean.cpu().numpy)
                (self._unfinished / f"states-{index + 1}.npy").unlink()
        on.team.wait()

    def _at_the_end(self, output: LMHead, states: np.memmap, part: slice) -> None:
        """Replace states after the last layer by gradients in them."""
        generator = torch.Generator().manual_seed((self._of.seed * 1_000_003 + part.start) % 2**63)
        rows = read(states, part, self._on.device)
        write(states, part, output.gradients(rows.flatten(0, 1), generator).view_as(rows))

    def _back(self, index: int, weights: Weights, states: list[np.memmap], part: slice) -> tuple[Tensor, ...]:
        """(2, d, d) sums of g gᵀ over a block after both parts; the gradients move to before the layer."""
        gradient, context = read(states[index + 1], part, self._on.device), self._on.stream.context
        with torch.enable_grad():
            x = read(states[index], part, self._on.device).requires_grad_()
            between = attention_block(x, weights, self._on.shape.layers[index], context, index)
            before, within = torch.autograd.grad(mlp_block(between, weights, context), (x, between), gradient)
        write(states[index], part, before)
        return (torch.stack([rows.T @ rows for rows in (within.flatten(0, 1), gradient.flatten(0, 1))]),)


def _name(index: int, part: Part) -> str:
    return f"{index:05d}-{part}.npy"
