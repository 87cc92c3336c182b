"""The dense model's hidden states, layer after layer: the one stream that every layer is measured on by itself.

Nothing that is folded changes it, so layers can be measured in any order and by any process, and an interrupted run
computes again what it needs. States lie in mapped files: before a layer, and after its attention.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.methods.base import ReadLayer
from llmfold.methods.streams import Stream, gather, heads_of
from llmfold.models import ModelShape, Role
from llmfold.models.forward import mlp_neurons, rms_norm
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, chunks, mapped, read, write
from llmfold.runtime.reduction import OrderedReduce

_DIGITS = 5


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
        team: the processes that share them.
    """

    shape: ModelShape
    stream: Stream
    start: Callable[[], Iterator[Tensor]]
    size: tuple[int, int]
    work: Path
    device: torch.device
    team: OrderedReduce = field(default_factory=OrderedReduce)

    def wide(self, weights: dict[Role, Tensor]) -> dict[Role, Tensor]:
        """A layer's tensors in float32 on the device."""
        return {role: tensor.to(self.device, torch.float32) for role, tensor in weights.items()}

    def states(self, name: str, create: bool) -> np.memmap:
        """Mapped float32 states (sequences, tokens, hidden) by the name of their file."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return mapped(path, (*self.size, self.shape.hidden) if create else None)

    def path(self, name: str) -> Path:
        """Where the states of a name lie."""
        return self.work / STATE_FOLDER / f"{name}.npy"

    def first_states(self, name: str) -> np.memmap:
        """States before layer 0; one process fills them."""

        def make(create: bool) -> np.memmap:
            states = self.states(name, create)
            if create:
                for part, hidden in zip(chunks(self.size[0]), self.start(), strict=True):
                    write(states, part, hidden)
            return states

        return self.team.create_or_open(make)


@dataclass(frozen=True)
class LayerInputs:
    """A dense layer with the states around it.

    Attributes:
        on: what is measured on.
        index: of the layer.
        weights: its tensors by role, float32 on the device.
        before, between, after: states before it, after its attention, and after it.
        order: permutation of all rows before it, or None.
    """

    on: Measurement
    index: int
    weights: dict[Role, Tensor]
    before: np.memmap
    between: np.memmap
    after: np.memmap
    order: np.ndarray | None

    def heads(self, part: slice) -> tuple[Tensor, Tensor]:
        """Outputs of the query heads for some sequences, (t, heads * head_dim), and row weights (t,)."""
        h = gather(self.before, part, self.order, self.on.device)
        found = heads_of(h, self.weights, self.on.shape.layers[self.index], self.on.stream.context, self.index)
        return found.flatten(0, 1), row_weight(read(self.between, part, self.on.device))

    def mlp(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised inputs of the MLP (t, hidden), its outputs (t, hidden), and row weights (t,)."""
        return self._mlp(*(read(states, part, self.on.device).flatten(0, 1) for states in (self.between, self.after)))

    def mlp_rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The same for single rows by their number in all sequences."""
        return self._mlp(*(read(s.reshape(-1, s.shape[-1]), rows, self.on.device) for s in (self.between, self.after)))

    def _mlp(self, between: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = rms_norm(between, self.weights["post_norm"], self.on.stream.context.eps)
        return x, after - between, row_weight(after)

    @property
    def tokens(self) -> int:
        """Rows of a sequence."""
        return self.on.size[1]

    def mlp_output(self, x: Tensor, mlp: dict[Role, Tensor]) -> Tensor:
        """Outputs (t, hidden) of an MLP of this layer's kind for inputs (t, hidden)."""
        return F.linear(mlp_neurons(x, mlp, self.on.stream.context), mlp["down"], mlp.get("down_bias"))

    def neurons(self, x: Tensor) -> Tensor:
        """Activations (t, n) of the dense MLP's neurons for inputs (t, hidden)."""
        return mlp_neurons(x, self.weights, self.on.stream.context)


class DenseStates:
    """States around a few neighbouring layers, moved through the model by all processes together."""

    def __init__(self, on: Measurement) -> None:
        """Set up; nothing is computed yet."""
        self.on = on
        self._held: dict[str, np.memmap] = {}
        self._next: int | None = None

    def move_to(self, layers: Sequence[int], read_layer: ReadLayer, chunk: int = CHUNK) -> None:
        """Have the states around ``layers`` (ascending) at hand, and drop those before them.

        All processes call this alike. States that lie behind are computed anew from the embeddings.

        Args:
            layers: layers to be measured next.
            read_layer: tensors of a layer by role.
            chunk: sequences at once.
        """
        on = self.on
        on.team.wait()  # others may still read what is about to go
        if self._next is None or layers[0] < self._next:
            self._drop(len(on.shape.layers) + 1)
            self._held[_before(0)] = on.first_states(_before(0))
            self._next = 0
        for index in range(self._next, layers[-1] + 1):
            self._drop(min(layers[0], index))
            for name in (_between(index), _before(index + 1)):
                self._held[name] = on.team.create_or_open(partial(on.states, name))
            inputs = self.around(index, on.wide(read_layer(index)))
            on.team.each(list(chunks(on.size[0], chunk)), partial(_forward, inputs))
        self._next = layers[-1] + 1

    def around(self, index: int, weights: dict[Role, Tensor]) -> LayerInputs:
        """A layer (float32 tensors on the device) that :meth:`move_to` has come to, with its states."""
        on, held = self.on, self._held
        order = on.stream.order(index, on.size[0] * on.size[1])
        return LayerInputs(
            on, index, weights, held[_before(index)], held[_between(index)], held[_before(index + 1)], order
        )

    def close(self) -> None:
        """Drop all states."""
        self.on.team.wait()
        self._drop(len(self.on.shape.layers) + 1)
        self._next = None

    def _drop(self, first_kept: int) -> None:
        """Drop the states of all layers before one."""
        for name in [name for name in self._held if int(name[:_DIGITS]) < first_kept]:
            del self._held[name]
            if self.on.team.is_main:
                self.on.path(name).unlink(missing_ok=True)


def _before(index: int) -> str:
    return f"{index:0{_DIGITS}d}"


def _between(index: int) -> str:
    return f"{index:0{_DIGITS}d}-between"


def _forward(inputs: LayerInputs, part: slice) -> None:
    """Carry some sequences through the dense layer."""
    weights, device = inputs.weights, inputs.on.device
    h = gather(inputs.before, part, inputs.order, device)
    heads = heads_of(h, weights, inputs.on.shape.layers[inputs.index], inputs.on.stream.context, inputs.index)
    h = h + F.linear(heads, weights["o"], weights.get("o_bias"))
    write(inputs.between, part, h)
    x = rms_norm(h, weights["post_norm"], inputs.on.stream.context.eps)
    write(inputs.after, part, h + inputs.mlp_output(x, weights))
