"""The hidden states of a model as far as it is folded, and what its next MLP is to give on them.

Least squares that also corrects what earlier layers got wrong fits noise; gradient steps that correct a part of it
gain on every text that was tried (eval/results/tried.md).
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from llmfold.methods.base import Output, Weights
from llmfold.methods.dense import LayerInputs, Measurement
from llmfold.models import LayerShape
from llmfold.runtime.hidden_states import CHUNK, chunks, read, write

CORRECTION = 0.5
"""Share of what earlier layers got wrong that the steps of a layer are to correct."""


class FoldedStates:
    """States before a layer of one output, moved through the layers that are written by all processes together."""

    def __init__(self, measurement: Measurement, output: Output) -> None:
        """Set up; nothing is computed yet.

        Args:
            measurement: of the dense model, whose sequences are followed.
            output: whose layers are run.
        """
        self._measurement, self._output = replace(measurement, work=output.work), output
        self._before: np.memmap | None = None
        self._index = 0

    def move_to(self, index: int, chunk: int = CHUNK) -> None:
        """Have the states before a layer at hand; all processes call this alike, when the layers before it are written.

        Args:
            index: of the layer, no smaller than the last time.
            chunk: sequences at once.
        """
        measurement, team = self._measurement, self._measurement.team
        team.wait()
        if self._before is None:
            self._before = measurement.first_states(_name(0))
        while self._index < index:
            after = team.create_or_open(partial(measurement.states, _name(self._index + 1)))
            weights = measurement.wide(self._output.read_layer(self._index))
            advance = partial(self._advance, self._before, after, weights)
            team.each(list(chunks(measurement.size[0], chunk)), advance)
            if team.is_main:
                measurement.path(_name(self._index)).unlink()
            self._before, self._index = after, self._index + 1

    def _advance(self, before: np.memmap, after: np.memmap, weights: Weights, part: slice) -> None:
        x, index = read(before, part, self._measurement.device), self._index
        write(after, part, self._measurement.context.layer(x, weights, index, self._output.layers[index]))

    def inputs(self, dense: LayerInputs, weights: Weights, widths: LayerShape, chunk: int = CHUNK) -> LayerInputs:
        """A layer on the states before it, whose MLP is to make up for a part of what is wrong with them.

        Args:
            dense: the layer in the dense model, of a family whose MLP is added to the states.
            weights: of the layer, its attention being folded and its MLP as it was; float32 on the device.
            widths: those of ``weights``.
            chunk: sequences at once.

        Returns:
            The states; where the MLP's output stands, its own is moved from what it gives here towards what would
            bring the states after the layer to those of the dense model, and they are moved with it.
        """
        assert self._before is not None
        measurement, index = self._measurement, dense.index
        context, (coupling,) = measurement.context, measurement.shape.couplings(dense.shape).neurons
        inside = measurement.states("folded-inside", create=True, width=context.inner_width)
        goal = measurement.states("folded-goal", create=True)
        for part in chunks(measurement.size[0], chunk):
            x = read(self._before, part, measurement.device)
            kept, own = context.through(x, weights, index, widths)
            wanted = torch.lerp(own, read(dense.after, part, measurement.device), CORRECTION)
            context.mlp_outputs(kept, coupling, index).add_(wanted - own)
            write(inside, part, kept)
            write(goal, part, wanted)
        return LayerInputs(measurement, index, dense.weights, self._before, inside, goal, None)


def _name(index: int) -> str:
    return f"folded-{index:05d}"
