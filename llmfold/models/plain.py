"""Configs that say everything themselves, read without transformers, whose import takes longer than a plan."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "llama3")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _maybe_count(value: Any) -> bool:
    return value is None or _count(value)


def _token(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _tokens(value: Any) -> bool:
    return all(map(_token, value)) if isinstance(value, list) else _token(value)


def _rope(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.get("rope_type") not in _ROPE_TYPES:
        return False
    return all(_number(number) for name, number in value.items() if name != "rope_type")


_KNOWN: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*_SIZES, "vocab_size", "max_position_embeddings", "pretraining_tp"), _count),
    **dict.fromkeys(
        ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "use_sliding_window", "is_llama_config"),
        _flag,
    ),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout"), _number),
    **dict.fromkeys(("model_type", "transformers_version", "dtype", "torch_dtype", "_model_name_or_path"), _text),
    **dict.fromkeys(("head_dim", "sliding_window"), _maybe_count),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rope),
    "max_window_layers": _number,
    **dict.fromkeys(("bos_token_id", "pad_token_id", "unk_token_id"), _token),
    "eos_token_id": _tokens,
    "architectures": lambda value: isinstance(value, list) and all(map(_text, value)),
    "layer_types": lambda value: isinstance(value, list) and set(value) == {"full_attention"},
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
    head_dim = config.get("head_dim")
    if config["hidden_size"] % config["num_attention_heads"] or (head_dim is None and config["model_type"] == "qwen3"):
        return None
    return SimpleNamespace(**{**config, "head_dim": head_dim or config["hidden_size"] // config["num_attention_heads"]})
