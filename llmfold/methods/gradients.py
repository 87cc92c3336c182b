"""Gradients of the dense model, layer by layer: one pass forward and one back, with hidden states on disk in between.

Memory is bounded by a layer. Disk holds (layers + 1) x sequences x tokens x hidden x 4 bytes: the states before every
layer and after the last, each in a file of its own; gradients take their place from the last one on.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmfold.methods.base import ReadLayer
from llmfold.methods.dense import Measurement
from llmfold.methods.method import Notify
from llmfold.models import Role
from llmfold.runtime.hidden_states import CHUNK, chunks, mapped, read, write

Differentiate = Callable[[int, dict[Role, Tensor], Tensor, Tensor], tuple[Tensor, ...]]
"""From a layer's index and weights, states before it and gradients behind it (both (s, tokens, hidden)): the gradients
before the layer, and tensors to be summed over all sequences."""


class GradientPasses:
    """The two passes over the first sequences of a measurement; all processes call every method alike."""

    def __init__(
        self, measurement: Measurement, folder: Path, sequences: int, read_layer: ReadLayer, notify: Notify
    ) -> None:
        """Set up; nothing is computed yet.

        Args:
            measurement: where the first sequences come from.
            folder: for the states; what an interrupted run left in it goes.
            sequences: how many take part.
            read_layer: tensors of a layer by role.
            notify: told of every layer.
        """
        self._measurement, self._folder, self._sequences = measurement, folder, sequences
        self._read_layer, self._notify = read_layer, notify
        self._layers = len(measurement.shape.layers)
        self._states: list[np.memmap] = []

    def forward(self, stage: str, chunk: int = CHUNK) -> None:
        """Fill the states before every layer and after the last, ``chunk`` sequences at once."""
        measurement, team = self._measurement, self._measurement.team
        self._states = team.create_or_open(self._create)
        if team.is_main:
            for part, hidden in zip(chunks(self._sequences), measurement.start(), strict=False):
                write(self._states[0], part, hidden[: part.stop - part.start])
        team.wait()
        for index in range(self._layers):
            team.each(list(chunks(self._sequences, chunk)), partial(self._through, index, self._load(index, stage)))

    def seed(self, gradients: Callable[[Tensor, slice], Tensor], size: int = CHUNK) -> None:
        """Replace the states after the last layer, (s, tokens, hidden), by ``gradients`` in them, by fixed blocks."""

        def replace(part: slice) -> None:
            write(self._states[-1], part, gradients(read(self._states[-1], part, self._measurement.device), part))

        self._measurement.team.each(list(chunks(self._sequences, size)), replace)

    def backward(
        self, stage: str, differentiate: Differentiate, chunk: int = CHUNK
    ) -> Iterator[tuple[int, dict[Role, Tensor], list[Tensor]]]:
        """Yield index, float32 weights and the sums over all sequences of every layer, the last first."""
        team, parts = self._measurement.team, list(chunks(self._sequences, chunk))
        for index in reversed(range(self._layers)):
            weights, sums = self._load(index, stage), list[Tensor]()
            for terms in team.map_in_order(parts, partial(self._back, index, weights, differentiate)):
                sums = sums or [torch.zeros_like(term) for term in terms]
                for total, term in zip(sums, terms, strict=True):
                    total += term
            yield index, weights, sums
            self._drop(index + 1)
        self._drop(0)
        team.wait()

    def _path(self, index: int) -> Path:
        return self._folder / f"states-{index}.npy"

    def _create(self, first: bool) -> list[np.memmap]:
        if first:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        size = (self._sequences, self._measurement.size[1], self._measurement.shape.hidden)
        return [mapped(self._path(index), size if first else None) for index in range(self._layers + 1)]

    def _load(self, index: int, stage: str) -> dict[Role, Tensor]:
        self._notify(f"layer {index}: {stage}")
        return self._measurement.wide(self._read_layer(index))

    @torch.no_grad()
    def _through(self, index: int, weights: dict[Role, Tensor], part: slice) -> None:
        context = self._measurement.context
        x = read(self._states[index], part, self._measurement.device)
        write(self._states[index + 1], part, context.layer(x, weights, index))

    def _back(
        self, index: int, weights: dict[Role, Tensor], differentiate: Differentiate, part: slice
    ) -> tuple[Tensor, ...]:
        x, behind = (read(self._states[i], part, self._measurement.device) for i in (index, index + 1))
        with torch.enable_grad():
            before, *terms = differentiate(index, weights, x.requires_grad_(), behind)
        write(self._states[index], part, before)
        return tuple(terms)

    def _drop(self, index: int) -> None:
        if self._measurement.team.is_main:
            self._path(index).unlink()
