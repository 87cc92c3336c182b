"""Configs that say everything themselves, read without transformers, whose import takes longer than a plan."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_OF_LLAMA3 = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
_ROPE_TYPES: dict[object, set[str]] = {"default": set(), "llama3": _OF_LLAMA3}
"""Rotary variants, and the numbers that each needs."""


def _is(*kinds: type) -> Callable[[Any], bool]:
    """A check for values of exactly these types, so that True is no number."""
    return lambda value: type(value) in kinds


_flag, _number, _float, _text, _token = _is(bool), _is(int, float), _is(float), _is(str), _is(int, type(None))


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _tokens(value: Any) -> bool:
    return all(map(_token, value)) if isinstance(value, list) else _token(value)


def _rope(value: Any) -> bool:
    if value is None:
        return True
    kind = value.get("rope_type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _ROPE_TYPES or not value.keys() >= _ROPE_TYPES[kind]:
        return False
    return all(_number(number) for name, number in value.items() if name != "rope_type")


_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "use_sliding_window", "is_llama_config")
_NUMBERS = ("rope_theta", "attention_dropout")
_TOKENS = ("bos_token_id", "pad_token_id", "unk_token_id")
_KNOWN: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*_SIZES, "vocab_size", "max_position_embeddings", "pretraining_tp", "max_window_layers"), _count),
    **dict.fromkeys(_FLAGS, _flag),
    "rms_norm_eps": _float,
    "initializer_range": lambda value: _float(value) and 0 <= value <= 1,
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(("model_type", "transformers_version", "dtype", "torch_dtype", "_model_name_or_path"), _text),
    **dict.fromkeys(("head_dim", "sliding_window"), lambda value: value is None or _count(value)),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rope),
    **dict.fromkeys(_TOKENS, _token),
    "eos_token_id": _tokens,
    "architectures": lambda value: isinstance(value, list) and all(map(_text, value)),
    "layer_types": lambda value: isinstance(value, list) and set(value) == {"full_attention"},
    "hidden_act": lambda value: value == "silu",
}
_NEEDED = {*_SIZES, "vocab_size", "max_position_embeddings", "tie_word_embeddings", "hidden_act", "rms_norm_eps"}
_GENERATION: dict[str, Callable[[Any], bool]] = {
    **{key: _KNOWN[key] for key in (*_TOKENS, "eos_token_id", "transformers_version")},
    **dict.fromkeys(("_from_model_config", "do_sample", "use_cache"), _flag),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), lambda value: value is False),
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty"), lambda value: type(value) is float and value > 0),
    **dict.fromkeys(("top_k", "max_length", "max_new_tokens"), _count),
}


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
    pad = config.get("pad_token_id")
    if pad is not None and not 0 <= pad < config["vocab_size"]:
        return None
    head_dim = config.get("head_dim")
    if config["hidden_size"] % config["num_attention_heads"] or (head_dim is None and _needs_head_dim(config)):
        return None
    return SimpleNamespace(**{**config, "head_dim": head_dim or config["hidden_size"] // config["num_attention_heads"]})


def _needs_head_dim(config: Mapping[str, Any]) -> bool:
    """Whether the stock config has another default for the width of a head than what follows from the others."""
    written = {"qwen2": "head_dim", "mistral": "layer_types"}.get(config["model_type"])
    return config["model_type"] == "qwen3" or written in config


def plain_generation(settings: Mapping[str, Any]) -> bool:
    """Whether a generation config holds nothing that transformers could refuse, so that it need not be asked."""
    return all(name in _GENERATION and _GENERATION[name](value) for name, value in settings.items())
