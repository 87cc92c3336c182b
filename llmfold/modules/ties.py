"""Channels of all tensors of a trace: which are one unit, which lie where, and which must stay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmfold.modules.coupling import ChannelCoupling, ChannelSlot, Couplings, Kind


@dataclass(frozen=True)
class Place:
    """An axis of a stored tensor, with the channel at each of its positions."""

    tensor: str
    axis: int
    channels: tuple[int, ...]
    kind: Kind


@dataclass
class Ties:
    """Channels by number, tied into units as a trace goes on.

    Attributes:
        places: axes of stored tensors that hold channels.
        made: channels by the module that makes them, in the order of the trace.
        frozen: by channel, why it must stay.
        norms: by path of a BatchNorm, that of the layer whose output it alone reads.
        heads: channels that are whole heads of an attention.
    """

    places: list[Place] = field(default_factory=list)
    made: dict[str, tuple[int, ...]] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    heads: set[int] = field(default_factory=set)
    _parent: list[int] = field(default_factory=list)

    def make(self, count: int, name: str) -> tuple[int, ...]:
        """New channels, which a module gives."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        channels = tuple(range(start, start + count))
        self.made[name] = self.made.get(name, ()) + channels
        return channels

    def unit(self, channel: int) -> int:
        """The unit of a channel: one channel that stands for all that are tied."""
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def tie(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Make channels the same units, pair by pair."""
        for a, b in zip(one, other, strict=True):
            first, second = sorted((self.unit(a), self.unit(b)))
            self._parent[second] = first

    def freeze(self, channels: Sequence[int], why: str) -> None:
        """Keep channels."""
        for channel in channels:
            self.frozen.setdefault(channel, why)

    def place(self, tensor: str, axis: int, channels: Sequence[int], kind: Kind) -> None:
        """Note that a tensor's axis holds channels; a tensor that is used twice keeps them where they differ."""
        for other in self.places:
            if (other.tensor, other.axis) == (tensor, axis):
                if other.channels != tuple(channels):
                    self.freeze((*other.channels, *channels), f"{tensor} is used more than once")
                return
        self.places.append(Place(tensor, axis, tuple(channels), kind))

    def couplings(self) -> Couplings:
        """All couplings, and what is kept: units that lie in the same tensors, equally often in each, go together."""
        names: dict[int, str] = {}
        for name, channels in self.made.items():
            for channel in channels:
                names.setdefault(self.unit(channel), name)
        frozen = {self.unit(channel): why for channel, why in self.frozen.items()}
        heads = {self.unit(channel) for channel in self.heads}
        found: list[ChannelCoupling] = []
        kept: dict[str, str] = {}
        for units, slots in self._alike():
            name = names[units[0]]
            why = next((frozen[unit] for unit in units if unit in frozen), None)
            if why is not None:
                kept.setdefault(name, why)
            elif len(units) > 1:
                same = sum(c.name.partition("#")[0] == name for c in found)
                found.append(
                    ChannelCoupling(f"{name}#{same + 1}" if same else name, len(units), slots, units[0] in heads)
                )
        return Couplings(tuple(found), kept, self.norms)

    def _alike(self) -> Iterator[tuple[list[int], tuple[ChannelSlot, ...]]]:
        """Units that lie in the same places, with their slots, by the first place."""
        unit_of = torch.tensor([self.unit(channel) for channel in range(len(self._parent))], dtype=torch.int64)
        held = [unit_of[torch.tensor(place.channels, dtype=torch.int64)] for place in self.places]
        rank, label = _first_seen(held, len(unit_of)), _parted(held, len(unit_of))
        slots: dict[int, list[ChannelSlot]] = {}
        members: dict[int, list[int]] = {}
        for place, units in zip(self.places, held, strict=True):
            order = rank[units].argsort(stable=True)
            sorted_units = units[order]
            for number in dict.fromkeys(label[sorted_units].tolist()):
                ours = label[sorted_units] == number
                if number not in members:
                    members[number] = list(dict.fromkeys(sorted_units[ours].tolist()))
                index = order[ours].view(len(members[number]), -1)
                slots.setdefault(number, []).append(ChannelSlot(place.tensor, place.axis, index, place.kind))
        for number, units_of in members.items():
            yield units_of, tuple(sorted(slots[number], key=lambda slot: slot.kind == "consumer"))


def _first_seen(held: Sequence[Tensor], units: int) -> Tensor:
    """(units,) where each first stands in the units of all places, one after the other."""
    everything = torch.cat([torch.empty(0, dtype=torch.int64), *held])
    positions = torch.arange(len(everything))
    return torch.full((units,), len(everything)).scatter_reduce(0, everything, positions, "amin")


def _parted(held: Sequence[Tensor], units: int) -> Tensor:
    """(units,) labels, equal where units lie in the same places equally often: place by place, classes are parted."""
    label, labels = torch.zeros(units, dtype=torch.int64), 1
    for place in held:
        found, times = torch.unique(place, return_counts=True)
        kinds, kind = torch.unique(label[found] * (len(place) + 1) + times, return_inverse=True)
        label[found] = labels + kind
        labels += len(kinds)
    return label
