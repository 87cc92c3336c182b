"""Couplings: sets of units with the producers that make them and the consumers that read them.

A unit of a neuron coupling is an intermediate neuron; a unit of a head coupling is a KV group with its query heads. A
unit stays or goes as a whole, in every tensor of the coupling at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from llmfold.models.base import LayerShape, Role
from llmfold.models.slots import Slots

GATE, VALUE, READER = ("gate", "gate_bias"), ("up", "up_bias"), "down"
"""Roles of neurons: what scales a neuron, from inside a nonlinearity; the value itself; the matrix that reads it."""
QUERY, KEY, HEAD_VALUE = ("q", "q_bias"), ("k", "k_bias"), ("v", "v_bias")
"""Roles of heads: a query head's own rows; rows that all query heads of a group share, of its key and of its value."""
Activation = Callable[[Tensor | None, Tensor], Tensor]
"""From what the gate (None where there is none) and the up projection give, (…, n) each, to the neurons."""


class OwnMlp(Protocol):
    """The module of an MLP."""

    def neurons(self, x: Tensor, mlp: Mapping[Role, Tensor]) -> Tensor:
        """Activations (…, n) of its neurons for inputs (…, hidden), with parameters by role."""


@dataclass(frozen=True)
class Coupling:
    """A set of units.

    Attributes:
        slots: by role, where its tensors lie in those of the layer.
    """

    slots: Slots

    def view(self, weights: Mapping[Role, Tensor], widths: LayerShape) -> dict[Role, Tensor]:
        """The coupling's tensors by role, of a layer that is as wide as ``widths``."""
        return {role: slot.read(weights[slot.tensor], widths) for role, slot in self.slots.items()}

    @property
    def producers(self) -> list[Role]:
        """Roles of the tensors that make the units: matrices, then biases."""
        roles = [role for role, slot in self.slots.items() if not slot.consumer]
        return sorted(roles, key=lambda role: not self.slots[role].matrix)

    @property
    def matrices(self) -> list[Role]:
        """Roles of the matrices: those that make the units, and the one that reads them."""
        return [*(role for role in self.producers if self.slots[role].matrix), self.reader]

    @property
    def reader(self) -> Role:
        """Role of the matrix that reads the units."""
        return next(role for role, slot in self.slots.items() if slot.consumer and slot.matrix)

    @property
    def is_plain(self) -> bool:
        """Whether every tensor has one role, and is stored as that."""
        return all(role == slot.tensor and slot.is_whole for role, slot in self.slots.items())


@dataclass(frozen=True)
class NeuronCoupling(Coupling):
    """Neurons of an MLP, or of one expert; roles are ``up``, ``down``, perhaps ``gate``, and their biases.

    Attributes:
        name: path in the layer, with the expert's number where it is one of a stack.
        reads: path of a module whose input is the producers' input.
        gives: path of the module whose output is the consumer's; for an expert, that of all experts together.
        units: how many neurons.
        activation: between producers and consumer.
        expert: number in a stack, None for an MLP that every token passes.
        router: path of the module that gives every expert's share of a token, where shares scale what experts are
            given; None where they scale what experts give.
        own: the MLP's own module, where nothing else tells what is between producers and consumer.
    """

    name: str
    reads: str
    gives: str
    units: int
    activation: Activation = field(compare=False)
    expert: int | None = None
    router: str | None = None
    own: "OwnMlp | None" = field(default=None, compare=False)

    def outputs(self, x: Tensor, mlp: Mapping[Role, Tensor]) -> Tensor:
        """Outputs (…, hidden) of the consumer for inputs (…, hidden), with parameters by role."""
        return F.linear(self.neurons(x, mlp), mlp["down"], mlp.get("down_bias"))

    def neurons(self, x: Tensor, mlp: Mapping[Role, Tensor]) -> Tensor:
        """Activations (…, n) of the neurons for inputs (…, hidden), with parameters by role."""
        if self.own is not None:
            return self.own.neurons(x, mlp)
        gate = F.linear(x, mlp["gate"], mlp.get("gate_bias")) if "gate" in mlp else None
        return self.activation(gate, F.linear(x, mlp["up"], mlp.get("up_bias")))


@dataclass(frozen=True)
class HeadCoupling(Coupling):
    """Heads of an attention; roles are ``q``, ``k``, ``v``, ``o`` and their biases.

    Attributes:
        consumer: path of the module whose input are the heads' outputs, side by side.
        head_dim: features of a head.
    """

    consumer: str
    head_dim: int


@dataclass(frozen=True)
class LayerCouplings:
    """What can be folded of a kind of layer.

    Attributes:
        neurons: of its MLP, or of all its experts; none where it has no MLP that is understood.
        heads: of its attention, None where that is kept.
        kept: why what is not folded is kept, in words.
    """

    neurons: tuple[NeuronCoupling, ...]
    heads: HeadCoupling | None
    kept: tuple[str, ...] = ()


def main_units(neurons: Sequence[NeuronCoupling]) -> int:
    """Neurons of the coupling that a layer's width counts: an expert, or the widest MLP; 0 where there is none."""
    main = max(neurons, key=lambda each: (each.expert is not None, each.units), default=None)
    return main.units if main else 0
