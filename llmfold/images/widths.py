"""Widths that the stock class of an image model takes: keys of its config made smaller, and what it builds of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from llmfold.errors import CheckpointError
from llmfold.images.model import ImageModel
from llmfold.images.stock import build, parts_of, read_config, state_shapes
from llmfold.modules.coupling import ChannelCoupling
from llmfold.modules.plan import narrowed_shapes

_KEYS = ("embedding_size", "hidden_sizes", "intermediate_size")
_HEADS, _HEAD_WIDTH = "num_attention_heads", "head_dim"
_TRIED = 0.5
"""Fraction at which keys are tried."""
Shapes = Mapping[str, tuple[int, ...]]
Value = int | list[int]


@dataclass(frozen=True)
class Key:
    """A key of a config that holds one width, or one of every stage.

    Attributes:
        part: the config inside the config that has it, None for the config itself.
        name: as config.json spells it.
        value: as the class reads it.
        beside: other keys of the same config that must be told once this one changes, and their values.
        fraction: of it that goes whatever is asked for; None where that decides.
    """

    part: str | None
    name: str
    value: Value
    beside: Mapping[str, int] = field(default_factory=dict)
    fraction: float | None = None

    def less(self, fraction: float) -> Value:
        """The value with a fraction of every width gone, or its own; at least one stays."""
        fraction = fraction if self.fraction is None else self.fraction
        if isinstance(self.value, int):
            return _less(self.value, fraction)
        return [_less(width, fraction) for width in self.value]

    @property
    def path(self) -> str:
        """``vision_config.intermediate_size``."""
        return self.name if self.part is None else f"{self.part}.{self.name}"


@dataclass(frozen=True)
class StockWidths:
    """Widths that a config holds.

    Attributes:
        raw: the content of config.json.
        widths: units that stay, by name of a coupling.
        changed: by path of a key, its value before and after.
    """

    raw: Mapping[str, Any]
    widths: Mapping[str, int]
    changed: Mapping[str, tuple[Value, Value]]


def width_keys(model: ImageModel) -> list[Key]:
    """Keys that together hold the widths of all couplings, and of nothing else; none where there are no such keys."""
    found = []
    for part, config in parts_of(model.config).items():
        heads = getattr(config, _HEADS, None)
        if model.heads and isinstance(heads, int):
            found.append(Key(part, _HEADS, heads, _head_width(config), model.heads))
        for name in _KEYS:
            value = getattr(config, name, None)
            if isinstance(value, int):
                found.append(Key(part, name, value))
            elif isinstance(value, list | tuple) and all(isinstance(width, int) for width in value):
                found.append(Key(part, name, list(value)))
    effective = [key for key in found if _matters(model, key)]
    tried = stock_widths(model, effective, _TRIED)
    units = {coupling.name: coupling.units for coupling in model.couplings.found}
    holds = tried is not None and all(width < units[name] for name, width in tried.widths.items())
    return effective if holds else []


def _head_width(config: PretrainedConfig) -> dict[str, int]:
    """The width of a head, which a class divides out of other keys where it is not told."""
    return {_HEAD_WIDTH: getattr(config, _HEAD_WIDTH, None) or config.hidden_size // config.num_attention_heads}


def _matters(model: ImageModel, key: Key) -> bool:
    """Whether a key decides anything: a classifier's config may speak of a text model that it has not."""
    alone = stock_widths(model, [key], _TRIED)
    return alone is None or any(alone.widths[each.name] < each.units for each in model.couplings.found)


def stock_widths(model: ImageModel, keys: Sequence[Key], fraction: float) -> StockWidths | None:
    """Widths of couplings in what the stock class builds with keys smaller by a fraction; None where it does not."""
    raw = copy.deepcopy(dict(model.raw))
    for key in keys:
        _set(raw, key, key.less(fraction))
    try:
        after = state_shapes(build(model.kind, read_config(model.kind, raw), weights=False))
    except CheckpointError:
        return None
    before = state_shapes(model.module)
    if after.keys() != before.keys():
        return None
    widths = {coupling.name: _width(coupling, before, after) for coupling in model.couplings.found}
    known = {name: width for name, width in widths.items() if width is not None}
    if len(known) < len(widths) or narrowed_shapes(model.couplings.found, before, known) != after:
        return None
    return StockWidths(raw, known, {key.path: (key.value, key.less(fraction)) for key in keys})


def _width(coupling: ChannelCoupling, before: Shapes, after: Shapes) -> int | None:
    """Units of a coupling by what became of the first axis that it lies on; None where it is no number of units."""
    slot = coupling.slots[0]
    gone, each = before[slot.tensor][slot.axis] - after[slot.tensor][slot.axis], slot.index.shape[1]
    left = coupling.units - gone // each
    return None if gone % each or not 1 <= left <= coupling.units else left


def _set(raw: dict[str, Any], key: Key, value: Value) -> None:
    """Put a value where config.json has the key, also where an older release has written a part twice."""
    values = {key.name: value, **key.beside}
    if key.part is None:
        raw.update(values)
        return
    places = [name for name in (key.part, f"{key.part}_dict") if isinstance(raw.get(name), dict)]
    for place in places:
        raw[place].update(values)
    if not places:
        raw[key.part] = values


def _less(width: int, fraction: float) -> int:
    return max(1, round(width * (1 - fraction)))
