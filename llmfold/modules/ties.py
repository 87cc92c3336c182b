"""Channels of all tensors of a trace: which are one unit, which lie where, and which must stay."""

from collections.abc import Sequence
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
        frozen: by unit, why it must stay.
    """

    places: list[Place] = field(default_factory=list)
    made: dict[str, tuple[int, ...]] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
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
        """All couplings, and what is kept."""
        frozen = {self.unit(channel): why for channel, why in self.frozen.items()}
        found: list[ChannelCoupling] = []
        kept: dict[str, str] = {}
        for name, channels in self._connected():
            units = list(dict.fromkeys(map(self.unit, channels)))
            why = next((frozen[unit] for unit in units if unit in frozen), None)
            slots = None if why else self._slots(units)
            if slots is None:
                kept[name] = why or "its channels are tied to different numbers of others"
            elif len(units) > 1:
                found.append(ChannelCoupling(name, len(units), slots))
        return Couplings(tuple(found), kept)

    def _connected(self) -> list[tuple[str, tuple[int, ...]]]:
        """Modules' channels, those that share a unit together, by the name of the first."""
        groups: list[tuple[str, tuple[int, ...], set[int]]] = []
        for name, channels in self.made.items():
            units = set(map(self.unit, channels))
            shared = [group for group in groups if group[2] & units]
            first, before = (shared[0][0], sum((g[1] for g in shared), ())) if shared else (name, ())
            units = units.union(*(group[2] for group in shared))
            at = groups.index(shared[0]) if shared else len(groups)
            groups = [group for group in groups if not any(group is each for each in shared)]
            groups.insert(at, (first, before + channels, units))
        return [(name, channels) for name, channels, _ in groups]

    def _slots(self, units: Sequence[int]) -> tuple[ChannelSlot, ...] | None:
        """Slots of a coupling, None where units are not alike in some tensor."""
        order = {unit: number for number, unit in enumerate(units)}
        slots: list[ChannelSlot] = []
        for place in self.places:
            at: list[list[int]] = [[] for _ in units]
            for position, channel in enumerate(place.channels):
                number = order.get(self.unit(channel))
                if number is not None:
                    at[number].append(position)
            sizes = set(map(len, at))
            if len(sizes) > 1:
                return None
            if sizes != {0}:
                slots.append(ChannelSlot(place.tensor, place.axis, torch.tensor(at), place.kind))
        return tuple(sorted(slots, key=lambda slot: slot.kind == "consumer"))
