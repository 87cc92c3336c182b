"""One pass of the dense model that measures what every layer would lose by every width."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.architectures import ModelShape, Role
from llmfold.methods.streams import CHUNK, Stream, chunks, gather, heads_of
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.repair.least_squares import NormalEquations, products, summed
from llmfold.selection.elimination import eliminate_blocks, eliminate_units
from llmfold.streaming.forward import mlp_neurons, rms_norm
from llmfold.streaming.states import HiddenStates, read, write
from llmfold.streaming.team import Team

T = TypeVar("T")
SENSITIVITIES_FILE = "llmfold_sensitivities.json"
_BEYOND = 3.0
"""Curves reach this many times the ratio, so that single layers may lose more than the average."""


def row_weight(hidden: Tensor) -> Tensor:
    """(t,) one over the mean square of each row: the next RMSNorm will divide by it."""
    return 1 / (hidden.square().mean(-1).flatten() + 1e-6)


@dataclass(frozen=True)
class Measurement:
    """What is measured on.

    Attributes:
        shape: the model's shape.
        stream: how rows are attended.
        start: yields the hidden states before layer 0 in chunks of ``CHUNK`` sequences, (s, tokens, hidden).
        size: sequences and tokens per sequence.
        work: folder for the states.
        device: where to compute.
        team: the processes that measure.
    """

    shape: ModelShape
    stream: Stream
    start: Callable[[], Iterator[Tensor]]
    size: tuple[int, int]
    work: Path
    device: torch.device
    team: Team = field(default_factory=Team)

    def first_states(self) -> HiddenStates:
        """States before layer 0, both streams alike."""
        return self.team.made(self._first_states)

    def _first_states(self, create: bool) -> HiddenStates:
        states = HiddenStates(self.work, 0, (*self.size, self.shape.hidden), create=create)
        if create:
            for part, hidden in zip(chunks(self.size[0]), self.start(), strict=True):
                write(states.dense, part, hidden)
                write(states.folded, part, hidden)
        return states

    def equations(self, blocks: Sequence[T], rows: Callable[[T], tuple[Tensor, Tensor, Tensor]]) -> NormalEquations:
        """Normal equations over blocks, of which each process computes the rows and products of its own."""
        return summed(self.team.in_order(blocks, lambda block: products(*rows(block))))


def measure(
    on: Measurement,
    read_layer: Callable[[int], dict[Role, Tensor]],
    ridge: float,
    ratio: float,
    metric: Tensor | None,
    say: Callable[[str], None],
    chunk: int = CHUNK,
) -> Sensitivities:
    """Curves of all layers: the rise of the ridge objective along the backward elimination of neurons and heads.

    Errors count relative to the residual stream that they disturb, since the next RMSNorm divides by it; that makes
    those of different layers and parts comparable.

    Args:
        on: states to measure on.
        read_layer: tensors of a layer by role.
        ridge: fraction of the mean diagonal of each Gram.
        ratio: about the fraction that will go, which bounds how far curves reach.
        metric: see :func:`llmfold.selection.elimination.eliminate_units`.
        say: told of every layer.
        chunk: sequences at once.
    """
    states = on.first_states()
    parts = list(chunks(on.size[0], chunk))
    rows = on.size[0] * on.size[1] * on.shape.hidden
    layers = []
    for index, layer in enumerate(on.shape.layers):
        say(f"layer {index}: measure")
        dense = _DenseLayer(on, states, index, read_layer(index))
        units = layer.kv_heads if layer.kv_heads > 1 else layer.heads
        size = layer.heads * on.shape.head_dim // units
        heads = eliminate_blocks(on.equations(parts, dense.attention), 1, size, ridge, metric=metric)
        keep = kept_neurons(layer.intermediate, ratio)
        neurons = eliminate_units(on.equations(parts, dense.mlp), keep, ridge, metric=metric)
        layers.append(LayerCurves(_curve(neurons.costs, rows), _curve(heads.costs, rows)))
    if on.team.leads:
        states.discard()
    return Sensitivities(layers)


def kept_neurons(intermediate: int, ratio: float) -> int:
    """Neurons that are left where the curve of a layer ends, when about ``ratio`` of the model will go."""
    return max(1, int(intermediate * (1 - min(0.95, _BEYOND * ratio))))


class _DenseLayer:
    """One layer of the dense model on the states, which go from one stream's file to the other's and back."""

    def __init__(self, on: Measurement, states: HiddenStates, index: int, weights: dict[Role, Tensor]) -> None:
        self._on, self._states, self._index = on, states, index
        self._weights = {role: tensor.to(on.device, torch.float32) for role, tensor in weights.items()}
        self._order = on.stream.order(index, on.size[0] * on.size[1])

    def attention(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Head outputs, what they add to the stream, and row weights."""
        on, weights = self._on, self._weights
        h = gather(self._states.dense, part, self._order, on.device)
        heads = heads_of(h, weights, on.shape.layers[self._index], on.stream.context, self._index)
        out = F.linear(heads, weights["o"], weights.get("o_bias"))
        write(self._states.folded, part, h + out)
        return heads.flatten(0, 1), out.flatten(0, 1), row_weight(h + out)

    def mlp(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Activations of the neurons, what they add to the stream, and row weights."""
        weights, context = self._weights, self._on.stream.context
        h = read(self._states.folded, part, self._on.device)
        neurons = mlp_neurons(rms_norm(h, weights["post_norm"], context.eps), weights, context)
        out = F.linear(neurons, weights["down"], weights.get("down_bias"))
        write(self._states.dense, part, h + out)
        return neurons.flatten(0, 1), out.flatten(0, 1), row_weight(h + out)


def _curve(costs: Tensor, rows: int) -> list[float]:
    return [0.0, *(costs.cumsum(0) / rows).tolist()]
