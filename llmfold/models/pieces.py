"""Parts of a layer that are folded apart: experts know nothing of one another, so a few are in memory at a time."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmfold.models.base import Role
from llmfold.models.coupling import LayerCouplings, NeuronCoupling

GROUP_PARAMETERS = 1 << 24
"""Experts are taken together up to so many parameters, 32 MB in half precision; a larger one comes alone."""


@dataclass(frozen=True)
class Piece:
    """Some tensors of a layer, or some experts of them.

    Attributes:
        layer: index in the model.
        roles: of the tensors; None for all of the layer.
        experts: entries of the first axis of each, None for whole tensors.
    """

    layer: int
    roles: frozenset[Role] | None = None
    experts: range | None = None

    @property
    def whole(self) -> bool:
        """Whether it is all of its layer."""
        return self.roles is None

    def has(self, role: Role) -> bool:
        """Whether a tensor of the layer belongs to it."""
        return self.roles is None or role in self.roles

    def tensors(self, shapes: Mapping[Role, tuple[int, ...]]) -> dict[Role, tuple[int, ...]]:
        """Shapes of its tensors, from those of the layer's."""
        return {
            role: size if self.experts is None else (len(self.experts), *size[1:])
            for role, size in shapes.items()
            if self.has(role)
        }

    def couplings(self, layer: LayerCouplings) -> LayerCouplings:
        """Its couplings, from those of the layer; experts are counted from its first."""
        neurons = tuple(self._counted(each) for each in layer.neurons if self._holds(each))
        heads = layer.heads if layer.heads and all(self.has(s.tensor) for s in layer.heads.slots.values()) else None
        return LayerCouplings(neurons, heads, layer.kept)

    def _holds(self, coupling: NeuronCoupling) -> bool:
        if not all(self.has(slot.tensor) for slot in coupling.slots.values()):
            return False
        return self.experts is None or coupling.expert in self.experts

    def _counted(self, coupling: NeuronCoupling) -> NeuronCoupling:
        if self.experts is None or coupling.expert is None:
            return coupling
        number = coupling.expert - self.experts.start
        slots = {role: dataclasses.replace(slot, expert=number) for role, slot in coupling.slots.items()}
        return dataclasses.replace(coupling, slots=slots, expert=number)


def in_groups(index: int, shapes: Mapping[Role, tuple[int, ...]], couplings: LayerCouplings) -> list[Piece]:
    """A layer's pieces: its experts a group at a time, and all else, in the order of its couplings.

    Args:
        index: of the layer.
        shapes: of its tensors.
        couplings: what can be folded of it.

    Returns:
        The pieces; the whole layer where it has no experts, or they lie in several stacks.
    """
    experts = [each for each in couplings.neurons if each.expert is not None]
    stacks = {frozenset(slot.tensor for slot in each.slots.values()) for each in experts}
    if len(stacks) != 1:
        return [Piece(index)]
    stack = stacks.pop()
    step = max(1, GROUP_PARAMETERS // sum(math.prod(shapes[role][1:]) for role in stack))
    starts = range(0, len(experts), step)
    groups = [Piece(index, stack, range(i, min(i + step, len(experts)))) for i in starts]
    rest = Piece(index, frozenset(shapes) - stack)
    return [rest, *groups] if couplings.neurons[0].expert is None else [*groups, rest]
