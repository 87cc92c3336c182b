"""Couplings of a traced module: channels that stay, go or merge together, and where they lie in its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["producer", "norm", "consumer"]
"""What a slot's tensor does with units: makes them, scales or shifts them each alone, or reads them."""


@dataclass(frozen=True)
class ChannelSlot:
    """The part of one tensor axis that belongs to a coupling.

    Attributes:
        tensor: name in the module's state dict.
        axis: that counts channels.
        index: (units, r) int64 positions on the axis; a unit has the same number of them as any other.
        kind: what the tensor does with units.
    """

    tensor: str
    axis: int
    index: Tensor
    kind: Kind

    def fills(self, tensor: Tensor) -> bool:
        """Whether all positions of the tensor's axis are the units', in order."""
        size = tensor.shape[self.axis]
        return self.index.numel() == size and torch.equal(self.index.flatten(), torch.arange(size))

    def read(self, tensor: Tensor) -> Tensor:
        """(units, r, …) of a tensor, its other axes in order; they lie in memory as in the tensor, or are a view."""
        whole = self.fills(tensor)
        picked = tensor if whole else tensor.index_select(self.axis, self.index.flatten().to(tensor.device))
        apart = torch.unflatten(picked, self.axis, tuple(self.index.shape))
        return apart.movedim((self.axis, self.axis + 1), (0, 1))

    def laid(self, values: Tensor) -> Tensor:
        """Values (units, r, …) as they lie on the axis, one unit after the other."""
        return values.movedim((0, 1), (self.axis, self.axis + 1)).flatten(self.axis, self.axis + 1).contiguous()

    def write(self, tensor: Tensor, values: Tensor) -> Tensor:
        """A copy of the tensor with other values (units, r, …) in the slot's place."""
        index = self.index.flatten().to(tensor.device)
        return tensor.index_copy(self.axis, index, self.laid(values.to(tensor.dtype)))

    def of(self, units: Tensor) -> "ChannelSlot":
        """The slot of some units."""
        return ChannelSlot(self.tensor, self.axis, self.index[units], self.kind)


@dataclass(frozen=True)
class ChannelCoupling:
    """Channels that are tied to each other one by one, with all that makes and reads them.

    Attributes:
        name: of the first module that makes them.
        units: how many.
        slots: where they lie; consumers last.
        heads: whether the units are heads of an attention.
    """

    name: str
    units: int
    slots: tuple[ChannelSlot, ...]
    heads: bool = False

    def of_kind(self, *kinds: Kind) -> tuple[ChannelSlot, ...]:
        """Slots of some kinds."""
        return tuple(slot for slot in self.slots if slot.kind in kinds)

    def rows(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """What the units weigh in every tensor but running statistics, as (units, d) blocks."""
        return [slot.read(tensors[slot.tensor]).flatten(1) for slot in self.slots if not is_statistic(slot.tensor)]


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of a BatchNorm."""
    return name.endswith(("running_mean", "running_var"))


@dataclass(frozen=True)
class Couplings:
    """What can be narrowed in a module.

    Attributes:
        found: couplings, in the order of the trace.
        kept: by name of the first module that makes them, why channels are kept.
        norms: by path of a BatchNorm, that of the layer whose output it alone reads.
    """

    found: tuple[ChannelCoupling, ...]
    kept: Mapping[str, str]
    norms: Mapping[str, str] = field(default_factory=dict)
