"""How much the model's predictions care for each direction of the residual stream, layer by layer.

The measure is the Fisher information of the dense model's own next-token distribution, averaged over tokens: with g
the gradient of −log p(y) in the states h after a layer and y drawn from the model itself, F = E[mean(h²) g gᵀ], since
errors count relative to h (:func:`llmfold.methods.measure.row_weight`). To second order an error e costs ½ eᵀFe of
KL divergence (Amari 1998).

One pass forward and one back stream the layers of the dense model; between them the states wait on disk.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmfold.architectures import ModelShape, tensor_name
from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.storage import fsync_path
from llmfold.methods import tokens as tk
from llmfold.methods.base import Weights
from llmfold.methods.output import ROWS, Output
from llmfold.methods.streams import CHUNK, chunks
from llmfold.streaming.forward import ForwardContext, decoder_layer
from llmfold.streaming.states import STATE_FOLDER, mapped, read, stored_array, write
from llmfold.streaming.team import Team

SEQUENCES = 64
"""Sequences to average over: a quadratic form of the residual stream needs fewer tokens than a wide MLP's Gram."""


def metric_of(moment: Tensor) -> Tensor:
    """(d, d) float64 map R with R Rᵀ = F / mean diag F + I for F (d, d).

    The identity stands for what an average over tokens does not see.
    """
    moment = moment.double()
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    factor: Tensor = torch.linalg.cholesky(moment / mean + torch.eye(len(moment), dtype=torch.float64))
    return factor


@dataclass(frozen=True)
class Importance:
    """Metrics of the states after every layer: computed when the first is asked for, kept in the work folder.

    Attributes:
        checkpoint: the dense model.
        shape: its shape.
        context: for its forward pass.
        tokens: (sequences, length) int64; the first ``SEQUENCES`` count.
        seed: of the labels drawn from the model.
        work: folder of the run.
        device: where to compute.
        team: the processes that measure.
    """

    checkpoint: Checkpoint
    shape: ModelShape
    context: ForwardContext
    tokens: Tensor
    seed: int
    work: Path
    device: torch.device
    team: Team = field(default_factory=Team)

    def metric(self, index: int) -> Tensor:
        """(hidden, hidden) float64 on the CPU: see :func:`metric_of`, for the states after layer ``index``."""
        folder = self.work / STATE_FOLDER / "importance"
        if not folder.exists():
            self.team.within_memory(partial(self._compute, folder), CHUNK, "the Fisher metric")
        return metric_of(torch.from_numpy(np.load(folder / _name(index), allow_pickle=False)))

    def _compute(self, folder: Path, chunk: int) -> None:
        unfinished, tokens = folder.with_suffix(".partial"), self.tokens[:SEQUENCES]
        parts = list(chunks(len(tokens), chunk))
        size = (*tokens.shape, self.shape.hidden)

        def create(first: bool) -> list[np.memmap]:
            if first:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            names = [f"states-{i}.npy" for i in range(len(self.shape.layers) + 1)]
            return [mapped(unfinished / name, size if first else None) for name in names]

        states = self.team.made(create)
        self._forward(tokens, states, parts)
        for index, moment in self._backward(states, parts):
            if self.team.leads:
                stored_array(unfinished / _name(index), moment.cpu().numpy)
                (unfinished / f"states-{index + 1}.npy").unlink()
        self.team.wait()
        if self.team.leads:
            (unfinished / "states-0.npy").unlink()
            unfinished.rename(folder)
            fsync_path(folder.parent)
        self.team.wait()

    def _layer(self, index: int) -> Weights:
        return {
            role: self.checkpoint.read(tensor_name(index, role)).to(self.device, torch.float32)
            for role, _ in self.shape.layer_roles(self.shape.layers[index])
        }

    def _forward(self, tokens: Tensor, states: list[np.memmap], parts: list[slice]) -> None:
        """Fill the states before every layer, and after the last."""
        if self.team.leads:
            embedded = tk.embedded(self.checkpoint, tokens, self.device)
            for part, hidden in zip(chunks(len(tokens)), embedded, strict=True):
                write(states[0], part, hidden)
        self.team.wait()
        for index in range(len(self.shape.layers)):
            advance = partial(self._through, index, self._layer(index), states)
            self.team.each(parts, advance)

    def _through(self, index: int, weights: Weights, states: list[np.memmap], part: slice) -> None:
        x = read(states[index], part, self.device)
        write(states[index + 1], part, decoder_layer(x, weights, self.shape.layers[index], self.context, index))

    def _backward(self, states: list[np.memmap], parts: list[slice]) -> Iterator[tuple[int, Tensor]]:
        """Yield each layer and (d, d) float64 E[mean(h²) g gᵀ], last layer first; gradients replace the states."""
        if self.team.leads:
            self._at_the_end(states[-1], parts)
        self.team.wait()
        for index in reversed(range(len(self.shape.layers))):
            moment = torch.zeros(self.shape.hidden, self.shape.hidden, dtype=torch.float64, device=self.device)
            back = partial(self._back, index, self._layer(index), states)
            for (squares,) in self.team.in_order(parts, back):
                moment += squares
            yield index, moment / (states[0].shape[0] * states[0].shape[1])

    def _back(self, index: int, weights: Weights, states: list[np.memmap], part: slice) -> tuple[Tensor, ...]:
        """(d, d) sum of mean(h²) g gᵀ over a block, whose gradients g move to before the layer."""
        gradient = read(states[index + 1], part, self.device)
        with torch.enable_grad():
            x = read(states[index], part, self.device).requires_grad_()
            after = decoder_layer(x, weights, self.shape.layers[index], self.context, index)
            (before,) = torch.autograd.grad(after, x, gradient)
        write(states[index], part, before)
        rows = (gradient * after.detach().square().mean(-1, keepdim=True).sqrt()).flatten(0, 1)
        return (rows.T @ rows,)

    def _at_the_end(self, states: np.memmap, parts: list[slice]) -> None:
        """Replace the states after the last layer by the gradients in them of −log p(y), y drawn from p."""
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        output = Output.of(self.checkpoint, self.shape, self.context.eps, self.device)
        for part in parts:
            rows = read(states, part, self.device).flatten(0, 1)
            found = [_gradient(block, output, generator) for block in torch.split(rows, ROWS)]
            write(states, part, torch.cat(found).view(-1, *states.shape[1:]))


def _gradient(rows: Tensor, output: Output, generator: torch.Generator) -> Tensor:
    with torch.enable_grad():
        x = rows.requires_grad_()
        normed = output.normed(x) * output.gain
        p = output.logits(normed.detach()).softmax(-1)
        labels = torch.multinomial(p.cpu(), 1, generator=generator).flatten().to(p.device)
        (gradient,) = torch.autograd.grad(normed, x, output.back(p) - output.table[labels].float())
    return gradient


def _name(index: int) -> str:
    return f"{index:05d}.npy"
