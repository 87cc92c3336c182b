"""From a config.json to a validated :class:`ModelShape`."""

import json
from collections.abc import Container, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llmfold.checkpoint.dtypes import is_dtype
from llmfold.errors import CheckpointError
from llmfold.models.base import Architecture, LayerShape, ModelShape
from llmfold.models.families import FAMILIES
from llmfold.models.plain import plain_settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How classes with a head for the next token are called."""
_LARGEST, _MOST_LAYERS = (1 << 31) - 1, 10_000
"""No size of a model is larger, and none has more layers: what holds a value for each stays small."""
_CORRECT = "correct it, or download config.json again"
_WIDTH_KEYS = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
ARCHITECTURES: dict[str, Architecture] = {a.model_type: a for a in FAMILIES}


def register_architecture(architecture: Architecture) -> None:
    """Make a family known, or replace what is known of it.

    The family must work as Llama does: RMSNorm before attention and before the MLP, rotary positions in the half-split
    layout, gate and up projections, tensors named as Llama's. The reload check of a fold tells whether it does.
    """
    ARCHITECTURES[architecture.model_type] = architecture


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """Look up the family of a raw config; None where it is not registered, and the stock class tells.

    Raises:
        CheckpointError: there is no model type, or the model is not a causal language model.
    """
    model_type = config.get("model_type")
    if model_type is None:
        raise CheckpointError("config.json names no model_type, which says how to read it: download it again")
    if not isinstance(model_type, str):
        raise CheckpointError(f"model_type in config.json is {model_type!r}, which is no name: download it again")
    names = config.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    if names and not any(isinstance(name, str) and name.endswith(_HEADS) for name in names):
        raise CheckpointError(
            f"config.json names {', '.join(map(str, names))}, which is not a causal language model (…ForCausalLM): "
            "fold the one that it was made from, or correct architectures"
        )
    return ARCHITECTURES.get(str(model_type))


def stock_config(config: Mapping[str, Any]) -> "PretrainedConfig":
    """Build the transformers config of a raw config (without per-layer widths), so that its defaults are filled in.

    Raises:
        CheckpointError: transformers refuses the config.
    """
    from transformers import CONFIG_MAPPING  # takes seconds, and most plans do without

    from llmfold.runtime.quiet import quiet_transformers

    if config["model_type"] not in CONFIG_MAPPING:
        raise CheckpointError(
            f"model_type {config['model_type']!r} in config.json is not known to the transformers installed: install a "
            "newer one, or write the type whose class computes the model"
        )
    own = ("per_layer_config", "auto_map") if config["model_type"] in ARCHITECTURES else ("auto_map",)
    plain = {k: v for k, v in config.items() if k not in own}
    try:
        with quiet_transformers():  # its warnings quote whatever the config holds
            return CONFIG_MAPPING[_stock_type(config, CONFIG_MAPPING)].from_dict(special_floats(plain))
    except Exception as error:  # transformers raises many kinds for a bad field
        reason = " ".join(str(error).split()).partition(" Errors: ")[0]  # after it the same again for each type
        raise CheckpointError(
            f"config.json is not a valid {config['model_type']} config ({reason}): {_CORRECT}"
        ) from error


def special_floats(value: Any) -> Any:
    """A value of a config with infinities and NaN in place of the words that transformers writes for them."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: special_floats(part) for key, part in value.items()}
    return [special_floats(part) for part in value] if isinstance(value, list) else value


def _stock_type(config: Mapping[str, Any], known: Container[str]) -> str:
    """The model type that ``AutoConfig`` takes a config for: Mistral with types of layers is Ministral since 5.0."""
    as_ministral = config["model_type"] == "mistral" and "layer_types" in config and "ministral" in known
    return "ministral" if as_ministral else str(config["model_type"])


def _check_dtype(config: Mapping[str, Any]) -> None:
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        known = value is None or isinstance(value, dict) or (isinstance(value, str) and is_dtype(value))
        if not known:
            raise CheckpointError(
                f"{key} in config.json is {value!r}, which transformers cannot read: write the dtype of the weights as "
                "torch names it, such as bfloat16, or remove it"
            )


def _positive(value: Any, key: str, most: int = _LARGEST) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{key} in config.json is {value!r}, not a positive integer: {_CORRECT}")
    if value > most:
        raise CheckpointError(f"{key} in config.json is {value!r}, more than the {most} of any model: {_CORRECT}")
    return value


def _flag(config: "PretrainedConfig | SimpleNamespace", key: bool | str) -> bool:
    return key if isinstance(key, bool) else bool(getattr(config, key, False))


def _layer_shape(widths: Mapping[str, Any], index: int) -> LayerShape:
    layer = LayerShape(*(_positive(widths[key], key) for key in _WIDTH_KEYS))
    if layer.heads % layer.kv_heads:
        raise CheckpointError(
            f"layer {index}: {layer.heads} query heads in config.json are not a multiple of {layer.kv_heads} KV heads: "
            f"{_CORRECT}"
        )
    return layer


def _per_layer(overrides: Any, count: int) -> dict[int, Mapping[str, Any]]:
    """Widths by layer index; transformers pads the indices with zeros when it saves ten layers and more."""
    if not isinstance(overrides, Mapping) or not all(isinstance(o, Mapping) for o in overrides.values()):
        raise CheckpointError(
            "per_layer_config in config.json does not map layers to {intermediate_size: …}: remove it"
        )
    widths = {}
    for key, override in overrides.items():
        index = int(key) if str(key).isdecimal() and len(key) < 10 else -1
        if not 0 <= index < count:
            raise CheckpointError(
                f"per_layer_config in config.json names layer {key}, but the model has {count} layers: {_CORRECT}"
            )
        unknown = sorted(set(map(str, override)) - set(_WIDTH_KEYS))
        if unknown:
            raise CheckpointError(
                f"per_layer_config in config.json changes {unknown[0]} of layer {key}; "
                f"supported are {', '.join(_WIDTH_KEYS)}"
            )
        widths[index] = override
    return widths


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Resolve a raw config to a shape; per-layer widths (``per_layer_config``) are honoured.

    Raises:
        CheckpointError: an unsupported family or a config that contradicts itself.
    """
    architecture = architecture_of(config)
    _check_dtype(config)
    if isinstance(config.get("num_hidden_layers"), int):  # transformers makes lists of so many
        _positive(config["num_hidden_layers"], "num_hidden_layers", _MOST_LAYERS)
    if architecture is None:
        return _stock_shape(json.dumps(config, sort_keys=True))
    stock = plain_settings(config) or stock_config(config)
    hidden = _positive(stock.hidden_size, "hidden_size")
    heads = _positive(stock.num_attention_heads, "num_attention_heads")
    head_dim = _positive(getattr(stock, "head_dim", None) or hidden // heads, "head_dim")
    common = dict(zip(_WIDTH_KEYS, (stock.intermediate_size, heads, stock.num_key_value_heads or heads), strict=True))
    count = _positive(stock.num_hidden_layers, "num_hidden_layers", _MOST_LAYERS)
    overrides = _per_layer({} if (widths := config.get("per_layer_config")) is None else widths, count)
    return ModelShape(
        architecture=architecture,
        hidden=hidden,
        head_dim=head_dim,
        vocabulary=_positive(stock.vocab_size, "vocab_size"),
        layers=tuple(_layer_shape({**common, **overrides.get(i, {})}, i) for i in range(count)),
        tied=bool(stock.tie_word_embeddings),
        qkv_bias=_flag(stock, architecture.qkv_bias),
        o_bias=_flag(stock, architecture.o_bias),
        mlp_bias=_flag(stock, architecture.mlp_bias),
        positions=_positive(stock.max_position_embeddings, "max_position_embeddings"),
    )


@lru_cache(maxsize=4)
def _stock_shape(config: str) -> ModelShape:
    """The shape that the stock class of a config, as JSON, tells; it is asked for several times in a run."""
    from llmfold.models.read_shape import stock_shape  # builds on transformers' models

    raw = json.loads(config)
    try:
        return stock_shape(stock_config(raw))
    except CheckpointError:
        raise
    except Exception as error:  # a class raises many kinds for sizes that it cannot be built of
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"llmfold does not understand the stock class of model_type {raw['model_type']!r} in config.json "
            f"({type(error).__name__}: {reason}): {_CORRECT}"
        ) from error
