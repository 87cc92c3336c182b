"""The dense model's hidden states, layer after layer: every layer is measured on them by itself.

Nothing that is folded changes them, so layers can be measured in any order and by any process, and an interrupted run
computes again what it needs. States lie in mapped files: before a layer, and what is kept of its inside.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmfold.methods.base import ReadLayer, Weights
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import NeuronCoupling
from llmfold.models.deferred import at_hand
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, chunks, mapped, read, write
from llmfold.runtime.reduction import OrderedReduce
from llmfold.runtime.seeding import seeded

if TYPE_CHECKING:
    from llmfold.models.context import Context  # builds on transformers' models
    from llmfold.models.stock_shape import StockShape

_DIGITS = 5


def row_weight(hidden: Tensor) -> Tensor:
    """(t,) one over the mean square of each row: the next RMSNorm will divide by it."""
    return 1 / (hidden.square().mean(-1).flatten() + 1e-6)


def shuffled(seed: int, index: int, rows: int) -> Tensor:
    """(rows,) int64 on the CPU: the permutation of a population's rows before layer ``index``, a new one for each."""
    return torch.randperm(rows, generator=seeded(seed, index))


@dataclass(frozen=True)
class Measurement:
    """Hidden states to measure on: of token sequences, or of a population of independent residual vectors.

    Attributes:
        context: of the model's forward passes.
        start: yields the hidden states before layer 0 in chunks of ``CHUNK`` sequences, (s, tokens, hidden) float32.
        size: sequences and tokens per sequence.
        work: folder for the states.
        device: where to compute.
        team: the processes that share them.
        shuffle_seed: of a population, whose members meet new random neighbours in every layer; None of sequences.
    """

    context: "Context"
    start: Callable[[], Iterator[Tensor]]
    size: tuple[int, int]
    work: Path
    device: torch.device
    team: OrderedReduce = field(default_factory=OrderedReduce)
    shuffle_seed: int | None = None

    @property
    def shape(self) -> "StockShape":
        """The model's shape."""
        return self.context.shape

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        sequences, tokens = self.size
        return sequences * tokens

    def first(self, sequences: int) -> "Measurement":
        """The same on fewer sequences, whole chunks of them."""
        start, parts = self.start, len(list(chunks(sequences)))
        return replace(self, start=lambda: islice(start(), parts), size=(sequences, self.size[1]))

    def wide(self, weights: Weights) -> dict[Role, Tensor]:
        """A layer's tensors in float32 on the device."""
        return {role: tensor.to(self.device, torch.float32) for role, tensor in weights.items()}

    def states(self, name: str, create: bool, width: int = 0) -> np.memmap:
        """Mapped float32 states (sequences, tokens, width or hidden) by the name of their file."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return mapped(path, (*self.size, width or self.shape.hidden) if create else None)

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

    def order(self, index: int) -> np.ndarray | None:
        """Permutation of all rows before layer ``index``, or None."""
        if self.shuffle_seed is None:
            return None
        return shuffled(self.shuffle_seed, index, self.rows).numpy()


@dataclass(frozen=True)
class LayerInputs:
    """A dense layer with the states around it.

    Attributes:
        measurement: what is measured on.
        index: of the layer.
        weights: its tensors by role, float32 on the device.
        before, after: states before and after it, (sequences, tokens, hidden).
        inside: what is kept of its inside, (sequences, tokens, inner width of the context).
        order: permutation of all rows before it, or None.
    """

    measurement: Measurement
    index: int
    weights: dict[Role, Tensor]
    before: np.memmap
    inside: np.memmap
    after: np.memmap
    order: np.ndarray | None

    @property
    def shape(self) -> LayerShape:
        """Widths of the layer."""
        return self.measurement.shape.layers[self.index]

    def attended(self, part: slice) -> Tensor:
        """What some sequences (s, tokens, hidden) hold before the layer, all rows being permuted by ``order``."""
        if self.order is None:
            return read(self.before, part, self.measurement.device)
        tokens, hidden = self.before.shape[1:]
        rows = self.order[part.start * tokens : part.stop * tokens]
        return read(self.before.reshape(-1, hidden), rows, self.measurement.device).view(-1, tokens, hidden)

    def heads(self, part: slice) -> tuple[Tensor, Tensor]:
        """Outputs of the query heads for some sequences, (t, heads * head_dim), and row weights (t,)."""
        measurement = self.measurement
        heads = measurement.context.heads(self.attended(part), self.weights, self.index)
        inside, after = (read(states, part, measurement.device) for states in (self.inside, self.after))
        return heads.flatten(0, 1), row_weight(measurement.context.disturbed(inside, after, self.index))

    @cached_property
    def mean_weight(self) -> float:
        """Weight of a row after the layer, averaged over all rows."""
        parts = (read(self.after, part, self.measurement.device) for part in chunks(len(self.after)))
        return sum(float(row_weight(part).double().sum()) for part in parts) / self.measurement.rows

    @property
    def tokens(self) -> int:
        """Rows of a sequence."""
        return self.measurement.size[1]

    def forward(self, part: slice) -> None:
        """Carry some sequences through the layer: fill ``inside`` and ``after``."""
        inside, after = self.measurement.context.through(self.attended(part), self.weights, self.index)
        write(self.inside, part, inside)
        write(self.after, part, after)

    def neurons_of(self, coupling: NeuronCoupling) -> "NeuronInputs":
        """What a coupling's neurons are given, and what they make of it."""
        return NeuronInputs(self, coupling) if coupling.expert is None else ExpertInputs(self, coupling)

    @cached_property
    def routing(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By the path of a stack of experts: experts (rows, k) of all rows and their weights, on the device."""
        measurement, found = self.measurement, dict[str, tuple[Tensor, Tensor]]()
        for coupling in measurement.shape.couplings(self.shape).neurons:
            if coupling.expert is not None and coupling.reads not in found:
                route = partial(measurement.context.routing, weights=self.weights, index=self.index, coupling=coupling)
                routed = [route(self.attended(part)) for part in chunks(measurement.size[0])]
                experts, shares = (torch.cat(each) for each in zip(*routed, strict=True))
                found[coupling.reads] = experts, shares
        return found


@dataclass(frozen=True)
class NeuronInputs:
    """A coupling's neurons on the states around their layer.

    Attributes:
        layer: the dense layer.
        coupling: the neurons.
    """

    layer: LayerInputs
    coupling: NeuronCoupling

    @property
    def tokens(self) -> int:
        """Rows of a sequence."""
        return self.layer.tokens

    @cached_property
    def weights(self) -> dict[Role, Tensor]:
        """The dense coupling's tensors by role, float32 on the device."""
        view = self.coupling.view(self.layer.weights, self.layer.shape)
        return {role: at_hand(tensor) for role, tensor in view.items()}

    @property
    def scarce(self) -> bool:
        """Whether there are fewer rows than neurons to tell apart."""
        return False

    @cached_property
    def scale(self) -> Tensor:
        """(hidden,) scale of the inputs: the gain of the norm before them where it is known, else their own size."""
        if self.layer.measurement.shape.architecture.registered:
            return self.layer.weights["post_norm"]
        x, _, _ = NeuronInputs.mlp(self, next(chunks(self.layer.measurement.size[0])))
        return x.square().mean(0).sqrt()

    def mlp(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (t, hidden) for some sequences, outputs (t, hidden), and row weights (t,)."""
        device = self.layer.measurement.device
        return self._given(*(read(s, part, device).flatten(0, 1) for s in (self.layer.inside, self.layer.after)))

    def mlp_rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The same for single rows by their number in all sequences."""
        device = self.layer.measurement.device
        return self._given(
            *(read(s.reshape(-1, s.shape[-1]), rows, device) for s in (self.layer.inside, self.layer.after))
        )

    def _given(self, inside: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layer.measurement.context.mlp_inputs(inside, self.coupling, self.layer.index)
        return x, self._outputs(inside, x), row_weight(after)

    def _outputs(self, inside: Tensor, x: Tensor) -> Tensor:
        return self.layer.measurement.context.mlp_outputs(inside, self.coupling, self.layer.index)

    def mlp_output(self, x: Tensor, mlp: dict[Role, Tensor]) -> Tensor:
        """Outputs (t, hidden) of neurons of this kind for inputs (t, hidden)."""
        return self.coupling.outputs(x, mlp)

    def neurons(self, x: Tensor) -> Tensor:
        """Activations (t, n) of the dense neurons for inputs (t, hidden)."""
        return self.coupling.neurons(x, self.weights)


@dataclass(frozen=True)
class ExpertInputs(NeuronInputs):
    """One expert's neurons, on the rows that are routed to it.

    A row counts as much as its output does; where shares scale what experts are given, the inputs are those.
    """

    @cached_property
    def routed(self) -> tuple[Tensor, Tensor]:
        """Numbers of the rows that are routed to the expert, ascending, and their shares, on the CPU."""
        experts, shares = self.layer.routing[self.coupling.reads]
        rows, places = torch.where(experts.eq(self.coupling.expert or 0))
        return rows.cpu(), shares[rows, places].float().cpu()

    @property
    def scarce(self) -> bool:
        """See :class:`NeuronInputs`."""
        return len(self.routed[0]) < self.coupling.units

    def mlp(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`NeuronInputs.mlp`; rows of some sequences that are routed to the expert."""
        (rows, shares), tokens = self.routed, self.tokens
        inside = (rows >= part.start * tokens) & (rows < part.stop * tokens)
        return self._of(rows[inside], shares[inside])

    def mlp_rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`NeuronInputs.mlp_rows`; as many rows routed to the expert, the last ones before those."""
        known, shares = self.routed
        nearest = (torch.searchsorted(known, torch.from_numpy(rows), right=True) - 1).clamp_min(0)
        return self._of(known[nearest], shares[nearest])

    def _outputs(self, inside: Tensor, x: Tensor) -> Tensor:
        return self.mlp_output(x, self.weights)

    def _of(self, rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, w = super().mlp_rows(rows.numpy())
        scale = shares.to(w.device)
        if self.coupling.router is None:
            return x, y, w * scale.square()
        x = x * scale[:, None]
        return x, self.mlp_output(x, self.weights), w


class DenseStates:
    """States around a few neighbouring layers, moved through the model by all processes together."""

    def __init__(self, measurement: Measurement) -> None:
        """Set up; nothing is computed yet."""
        self.measurement = measurement
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
        measurement, team = self.measurement, self.measurement.team
        team.wait()  # others may still read what is about to go
        if self._next is None or layers[0] < self._next:
            self._drop(len(measurement.shape.layers) + 1)
            self._held[_before(0)] = measurement.first_states(_before(0))
            self._next = 0
        for index in range(self._next, layers[-1] + 1):
            self._drop(min(layers[0], index))
            for name, width in ((_inside(index), measurement.context.inner_width), (_before(index + 1), 0)):
                self._held[name] = team.create_or_open(partial(measurement.states, name, width=width))
            inputs = self.around(index, measurement.wide(read_layer(index)))
            team.each(list(chunks(measurement.size[0], chunk)), inputs.forward)
        self._next = layers[-1] + 1

    def around(self, index: int, weights: dict[Role, Tensor]) -> LayerInputs:
        """A layer (float32 tensors on the device) that :meth:`move_to` has come to, with its states."""
        measurement, held = self.measurement, self._held
        before, inside, after = held[_before(index)], held[_inside(index)], held[_before(index + 1)]
        return LayerInputs(measurement, index, weights, before, inside, after, measurement.order(index))

    def after(self, index: int) -> np.memmap:
        """States after a layer that :meth:`move_to` has come to."""
        return self._held[_before(index + 1)]

    def close(self) -> None:
        """Drop all states."""
        self.measurement.team.wait()
        self._drop(len(self.measurement.shape.layers) + 1)
        self._next = None

    def _drop(self, first_kept: int) -> None:
        """Drop the states of all layers before one."""
        for name in [name for name in self._held if int(name[:_DIGITS]) < first_kept]:
            del self._held[name]
            if self.measurement.team.is_main:
                self.measurement.path(name).unlink(missing_ok=True)


def _before(index: int) -> str:
    return f"{index:0{_DIGITS}d}"


def _inside(index: int) -> str:
    return f"{index:0{_DIGITS}d}-inside"
