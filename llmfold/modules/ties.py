"""Channels of all tensors of a trace: which are one unit, which lie where, and which must stay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

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
    """

    places: list[Place] = field(default_factory=list)
    made: dict[str, tuple[int, ...]] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
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
        found: list[ChannelCoupling] = []
        kept: dict[str, str] = {}
        for units, slots in self._alike():
            name = names[units[0]]
            why = next((frozen[unit] for unit in units if unit in frozen), None)
            if why is not None:
                kept.setdefault(name, why)
            elif len(units) > 1:
                same = sum(c.name.partition("#")[0] == name for c in found)
                found.append(ChannelCoupling(f"{name}#{same + 1}" if same else name, len(units), slots))
        return Couplings(tuple(found), kept, self.norms)

    def _alike(self) -> Iterator[tuple[list[int], tuple[ChannelSlot, ...]]]:
        """Units that lie in the same places, with their slots, by the first place."""
        at: dict[int, dict[int, list[int]]] = {}
        for number, place in enumerate(self.places):
            for position, channel in enumerate(place.channels):
                at.setdefault(self.unit(channel), {}).setdefault(number, []).append(position)
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for unit, places in at.items():
            groups.setdefault(tuple((number, len(positions)) for number, positions in places.items()), []).append(unit)
        for signature, units in groups.items():
            slots = []
            for number, _ in signature:
                place = self.places[number]
                index = torch.tensor([at[unit][number] for unit in units])
                slots.append(ChannelSlot(place.tensor, place.axis, index, place.kind))
            yield units, tuple(sorted(slots, key=lambda slot: slot.kind == "consumer"))
