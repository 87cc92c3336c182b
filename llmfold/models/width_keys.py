"""Where a config holds the widths of a model: found by changing it, and looking at what the stock class makes of it."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from llmfold.errors import CheckpointError
from llmfold.models.base import LayerShape
from llmfold.models.coupling import main_units
from llmfold.models.settings import setting, text_config
from llmfold.models.skeleton import build_stock
from llmfold.models.stock import StockModel

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape

_NEURON_KEYS = (
    *("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "intermediate_size", "ffn_dim", "n_inner"),
    *("shared_expert_intermediate_size", "shared_intermediate_size", "intermediate_size_mlp", "mlp_hidden_size"),
    *("inner_hidden_size", "d_inner", "d_ff", "hidden_dim", "block_ff_dim", "ff_dim", "dense_intermediate_size"),
    *(
        "dff",
        "dim_ff",
        "moe_shared_expert_intermediate_size",
        "mlp_dim",
        "shared_experts_intermediate_size",
        "n_inner_dim",
    ),
)
_HEAD_KEYS = ("num_attention_heads", "num_key_value_heads", "num_kv_heads")
_SWITCHES = {"block_auto_adjust_ff_dim": False}
"""Keys that have a class compute another width than its config says, and their value where it does not."""
_FACTORS = (1, 2)
"""A key may hold the width of gate and up projection together."""
_MOST_TRIED = 40


@dataclass(frozen=True)
class WidthKeys:
    """Keys of a config that hold widths.

    Attributes:
        neurons: by kind of layer and group of couplings, the key, and how many times the width it holds.
        heads: whether its heads can be counted anew.
    """

    neurons: Mapping[tuple[int, str], tuple[str, int]]
    heads: bool


def _widths(shape: "StockShape", after: tuple[LayerShape, ...]) -> dict[str, int]:
    """Values of a config's keys for widths ``after``."""
    values: dict[str, int] = {}
    for layer in after:
        for coupling in shape.couplings(layer).neurons:
            held = shape.keys.neurons.get((layer.kind, group_of(coupling.name)))
            if held is not None:
                values[held[0]] = held[1] * shape.units(coupling, layer)
    if values:
        text = text_config(shape.stock.model.config)
        values |= {switch: off for switch, off in _SWITCHES.items() if setting(text, switch) is not None}
    return values


def group_of(name: str) -> str:
    """The name of a coupling without an expert's number."""
    stem, _, last = name.rpartition(".")
    return stem if last.isdigit() else name


def updated(config: PretrainedConfig, shape: "StockShape", after: tuple[LayerShape, ...]) -> PretrainedConfig:
    """A config with other widths."""
    new = copy.deepcopy(config)
    text = text_config(new)
    for key, value in config_values(shape, after, config).items():
        setattr(text, key, value)
    return new


def config_values(shape: "StockShape", after: tuple[LayerShape, ...], config: PretrainedConfig) -> dict[str, Any]:
    """Keys of the language model's config and their values at widths ``after``."""
    values: dict[str, Any] = dict(_widths(shape, after))
    changed = [b for a, b in zip(shape.layers, after, strict=True) if a.heads != b.heads]
    if changed:
        text = text_config(config)
        values["num_attention_heads"] = changed[0].heads
        key = next((key for key in _HEAD_KEYS[1:] if setting(text, key) is not None), None)
        if key is not None:
            values[key] = changed[0].kv_heads
        values["head_dim"] = shape.head_dim
    return values


def holds(config: PretrainedConfig, shape: "StockShape", after: tuple[LayerShape, ...]) -> bool:
    """Whether the stock class builds layers of widths ``after`` from the config that says so."""
    try:
        stock = StockModel(build_stock(updated(config, shape, after)))
    except (CheckpointError, ValueError, TypeError, AttributeError, RuntimeError, KeyError):
        return False
    return stock.parameters == dataclasses.replace(shape, layers=after).all_parameters()


def find_keys(shape: "StockShape", config: PretrainedConfig) -> "StockShape":
    """The shape with the keys that hold its widths; what no key holds is kept, and said to be."""
    groups = {
        (kind.full.kind, group_of(each.name)): each.units for kind in shape.kinds for each in kind.couplings.neurons
    }
    candidates = list(_candidates(groups, text_config(config)))
    # Kinds that have keys of their own are told from kinds that share one by narrowing them differently. A coupling
    # without a key follows another's, or is kept.
    for kept, alike, neurons in itertools.product((False, True), (False, True), candidates):
        tried = dataclasses.replace(shape, keys=WidthKeys(neurons, heads=False))
        if kept:
            rest = groups.keys() - neurons.keys()
            tried = _without(tried, {each: f"{each[1]}, whose width no key of the config holds alone" for each in rest})
        if not neurons or holds(config, tried, _narrower(tried, alike=alike)):
            break
    else:
        tried = _without(shape, dict.fromkeys(groups, "no key of its config holds the width of its MLP alone"))
        tried = dataclasses.replace(tried, keys=WidthKeys({}, heads=False))
    heads = dataclasses.replace(tried, keys=dataclasses.replace(tried.keys, heads=True))
    fewer = _fewer_heads(heads)
    if fewer != heads.layers and holds(config, heads, fewer):
        return heads
    return _without_heads(tried)


def _candidates(groups: Mapping[tuple[int, str], int], text: Any) -> Iterator[dict[tuple[int, str], tuple[str, int]]]:
    """Assignments of keys to groups of couplings, the likelier first."""
    options: list[list[tuple[str, int] | None]] = []
    for (_, name), units in groups.items():
        keys = [key for factor in _FACTORS for key in _NEURON_KEYS if _value(text, key) in (factor * units, "unset")]
        if "expert" not in name and "shared" not in name:
            keys.sort(key=lambda key: key.startswith(("moe", "shared", "expert")))
        elif "shared" in name:
            keys.sort(key=lambda key: "shared" not in key)
        if any(setting(text, switch) not in (None, off) for switch, off in _SWITCHES.items()):
            options.append([("intermediate_size", 1)])
            continue
        options.append([*map(partial(_times, text, units), dict.fromkeys(keys)), None])  # None: another key's width
    for chosen in itertools.islice(itertools.product(*options), _MOST_TRIED):
        found = {group: key for group, key in zip(groups, chosen, strict=True) if key is not None}
        if found or not groups:
            yield found


def _times(text: Any, units: int, key: str) -> tuple[str, int]:
    """A key with how many times the width it holds."""
    value = _value(text, key)
    return key, value // units if isinstance(value, int) else 1


def _value(text: Any, key: str) -> Any:
    """The value of a key; ``unset`` where the config knows it and leaves it to a default."""
    try:
        value = getattr(text, key)
    except (AttributeError, RuntimeError):  # not there, or of each layer's own
        return None
    return "unset" if value is None else value


def _narrower(shape: "StockShape", *, alike: bool) -> tuple[LayerShape, ...]:
    """All layers at half of their neurons; or less, by another share for each kind."""
    return tuple(
        dataclasses.replace(layer, intermediate=layer.intermediate // (2 if alike else 2 + layer.kind))
        for layer in shape.layers
    )


def _fewer_heads(shape: "StockShape") -> tuple[LayerShape, ...]:
    """All layers with one unit of heads less."""
    return tuple(
        layer.with_units(layer.intermediate, layer.head_units - 1) if layer.head_units > 1 else layer
        for layer in shape.layers
    )


def _without(shape: "StockShape", lost: Mapping[tuple[int, str], str]) -> "StockShape":
    """The shape with some groups of couplings, by kind of layer, kept as they are, for the reasons given."""
    kinds = []
    for kind in shape.kinds:
        neurons = tuple(each for each in kind.couplings.neurons if (kind.full.kind, group_of(each.name)) not in lost)
        reasons = dict.fromkeys(reason for (number, _), reason in sorted(lost.items()) if number == kind.full.kind)
        couplings = dataclasses.replace(kind.couplings, neurons=neurons, kept=(*kind.couplings.kept, *reasons))
        full = dataclasses.replace(kind.full, intermediate=main_units(neurons))
        kinds.append(dataclasses.replace(kind, full=full, couplings=couplings))
    layers = tuple(dataclasses.replace(each, intermediate=kinds[each.kind].full.intermediate) for each in shape.layers)
    return dataclasses.replace(shape, kinds=tuple(kinds), layers=layers)


def _without_heads(shape: "StockShape") -> "StockShape":
    """The shape with heads that are kept; they still count in costs."""
    kinds = tuple(
        dataclasses.replace(kind, couplings=dataclasses.replace(kind.couplings, heads=None)) for kind in shape.kinds
    )
    return dataclasses.replace(shape, kinds=kinds)
