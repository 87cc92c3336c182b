"""Configs that say everything themselves, read without transformers, whose import takes longer than a plan."""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "llama3")


def _is(*kinds: type) -> Callable[[Any], bool]:
    """A check for values of exactly these types, so that True is no number."""
    return lambda value: type(value) in kinds


_flag, _text, _token = _is(bool), _is(str), _is(int, type(None))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _above_zero(value: Any) -> bool:
    return _number(value) and value > 0


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _tokens(value: Any) -> bool:
    return all(map(_token, value)) if isinstance(value, list) else _token(value)


def _rope(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.get("rope_type") not in _ROPE_TYPES:
        return False
    return all(_above_zero(number) for name, number in value.items() if name != "rope_type")


_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "use_sliding_window", "is_llama_config")
_NUMBERS = ("rms_norm_eps", "initializer_range", "attention_dropout", "max_window_layers")
_KNOWN: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*_SIZES, "vocab_size", "max_position_embeddings", "pretraining_tp"), _count),
    **dict.fromkeys(_FLAGS, _flag),
    **dict.fromkeys(_NUMBERS, _number),
    "rope_theta": _above_zero,
    **dict.fromkeys(("model_type", "transformers_version", "dtype", "torch_dtype", "_model_name_or_path"), _text),
    **dict.fromkeys(("head_dim", "sliding_window"), lambda value: value is None or _count(value)),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rope),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "unk_token_id"), _token),
    "eos_token_id": _tokens,
    "architectures": lambda value: isinstance(value, list) and all(map(_text, value)),
    "layer_types": lambda value: isinstance(value, list) and value == ["full_attention"] * max(1, len(value)),
    "hidden_act": lambda value: value == "silu",
}
_NEEDED = {*_SIZES, "vocab_size", "tie_word_embeddings", "hidden_act", "rms_norm_eps"}


def plain_settings(config: Mapping[str, Any]) -> SimpleNamespace | None:
    """The settings of a raw config that leaves no size to a default and names nothing unusual; None for any other.

    What transformers would build from such a config holds the same values.
    """
    if config.get("model_type") not in _FAMILIES or not config.keys() >= _NEEDED:
        return None
    if not all(name in _KNOWN and _KNOWN[name](value) for name, value in config.items()):
        return None
    if len(config.get("layer_types", ())) not in (0, config["num_hidden_layers"]):
        return None
    head_dim = config.get("head_dim")
    if config["hidden_size"] % config["num_attention_heads"] or (head_dim is None and config["model_type"] == "qwen3"):
        return None
    return SimpleNamespace(**{**config, "head_dim": head_dim or config["hidden_size"] // config["num_attention_heads"]})
