"""Couplings: sets of units with the producers that make them and the consumers that read them.

A unit of a neuron coupling is an intermediate neuron; a unit of a head coupling is a KV group with its query heads. A
unit stays or goes as a whole, in every tensor of the coupling at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from llmfold.models.base import ATTENTION_ROLES, MLP_ROLES, LayerShape, ModelShape, Role
from llmfold.models.slots import Slot, Slots

Activation = Callable[[Tensor | None, Tensor], Tensor]
"""From what the gate (None where there is none) and the up projection give, (…, n) each, to the neurons."""


class OwnMlp(Protocol):
    """The module of an MLP."""

    def neurons(self, x: Tensor, mlp: Mapping[Role, Tensor]) -> Tensor:
        """Activations (…, n) of its neurons for inputs (…, hidden), with parameters by role."""


@dataclass(frozen=True)
class NeuronCoupling:
    """Neurons of an MLP, or of one expert.

    Attributes:
        name: path in the layer, with the expert's number where it is one of a stack.
        reads: path of a module whose input is the producers' input.
        gives: path of the module whose output is the consumer's; for an expert, that of all experts together.
        units: how many neurons.
        slots: by role: ``up``, ``down``, perhaps ``gate``, and their biases.
        activation: between producers and consumer.
        expert: number in a stack, None for an MLP that every token passes.
        own: the MLP's own module, where nothing else tells what is between producers and consumer.
    """

    name: str
    reads: str
    gives: str
    units: int
    slots: Slots
    activation: Activation = field(compare=False)
    expert: int | None = None
    own: "OwnMlp | None" = field(default=None, compare=False)

    def view(self, weights: Mapping[Role, Tensor], widths: LayerShape) -> dict[Role, Tensor]:
        """The coupling's tensors by role, of a layer that is as wide as ``widths``."""
        return {role: slot.read(weights[slot.tensor], widths) for role, slot in self.slots.items()}


@dataclass(frozen=True)
class HeadCoupling:
    """Heads of an attention.

    Attributes:
        consumer: path of the module whose input are the heads' outputs, side by side.
        slots: by role: ``q``, ``k``, ``v``, ``o`` and their biases.
        head_dim: features of a head.
    """

    consumer: str
    slots: Slots
    head_dim: int

    def view(self, weights: Mapping[Role, Tensor], widths: LayerShape) -> dict[Role, Tensor]:
        """The coupling's tensors by role, of a layer that is as wide as ``widths``."""
        return {role: slot.read(weights[slot.tensor], widths) for role, slot in self.slots.items()}


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


def described_couplings(shape: ModelShape, layer: LayerShape) -> LayerCouplings:
    """Couplings of the families that are described in llmfold: every tensor has one role, and is stored as that."""
    roles = dict(shape.layer_roles(layer))
    heads = {role: _whole(role, "o") for role in ATTENTION_ROLES if role in roles and not role.endswith("_norm")}
    neurons = {role: _whole(role, "down") for role in MLP_ROLES if role in roles}
    mlp = NeuronCoupling("mlp", "", "", layer.intermediate, neurons, _no_activation)
    return LayerCouplings((mlp,), HeadCoupling("", heads, shape.head_dim))


def _whole(role: Role, consumer: Role) -> Slot:
    return Slot(role, axis=int(role == consumer), matrix=not role.endswith("_bias"), consumer=role == consumer)


def _no_activation(gate: Tensor | None, up: Tensor) -> Tensor:
    raise TypeError("the forward pass of a described family has its own activation")
