"""The config of the written checkpoint, and its modelling file where layers differ in width."""

from collections.abc import Mapping
from typing import Any

import transformers

from llmfold.checkpoint.side_files import without_paths
from llmfold.models import WINDOW_KEYS, Architecture, LayerShape, shape_of, stock_config
from llmfold.models.family_settings import rope_parameters
from llmfold.models.own_code import auto_map, class_name
from llmfold.pipeline.portable import older_rope
from llmfold.planning import FoldPlan

WIDTH_KEYS = {"intermediate_size": "intermediate", "num_attention_heads": "heads", "num_key_value_heads": "kv_heads"}
_PER_LAYER_ONLY = ("per_layer_config", "auto_map", "allow_global_per_layer_attribute_access")
_LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")
_SLICES = ("pretraining_tp",)
"""In how many slices some loaders compute a projection: the same sum, if the width divides by it."""
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Parts of a config that may say what the language model is."""
_SPELLED_OUT = (
    *("rms_norm_eps", "hidden_act", "max_position_embeddings", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("vocab_size", "hidden_size", "num_hidden_layers", "attention_dropout", "use_cache"),
)


def output_config(source: Mapping[str, Any], plan: FoldPlan) -> dict[str, Any]:
    """Config of the folded model: the source's fields, the new widths, and rotary parameters in both spellings.

    Args:
        source: raw config of the model that was read.
        plan: the fold.

    Returns:
        Contents of config.json. Widths that no stock config holds add ``per_layer_config`` and ``auto_map``.
    """
    if not plan.after.architecture.registered:
        return _with_widths(source, plan)
    leftovers = () if plan.before.architecture.windows else WINDOW_KEYS  # other loaders and caches may read them
    kept = {k: v for k, v in source.items() if k not in (*_PER_LAYER_ONLY, *leftovers)}
    config: dict[str, Any] = without_paths(kept)
    family = plan.written_as
    if family.model_type != config["model_type"]:
        config = _rewritten(config, family)
    config.update(_widths(_global_widths(plan)), head_dim=plan.after.head_dim, architectures=[family.causal_lm])
    config.update(_rope(source), transformers_version=transformers.__version__)
    config.update(_new_biases(plan))
    if shape_of(source).tied != plan.after.tied:  # loaders of any version then compute with the head that is stored
        config["tie_word_embeddings"] = plan.after.tied
    config.update({key: 1 for key in _SLICES if key in config})
    if plan.config.dtype != "auto":
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = plan.config.dtype
    if plan.needs_remote_code:
        config["per_layer_config"] = {str(i): _widths(layer) for i, layer in enumerate(plan.after.layers)}
        config["architectures"] = [class_name(family)]
        config["auto_map"] = auto_map(family)
        if family.heads_divide_hidden:  # its config reads the global head count, which else is forbidden
            config["allow_global_per_layer_attribute_access"] = True
    return config


def _with_widths(source: Mapping[str, Any], plan: FoldPlan) -> dict[str, Any]:
    """The source's config with the new widths where its class reads them, of a family that is not registered."""
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models
    from llmfold.models.width_keys import config_values

    assert isinstance(plan.after, StockShape)
    assert isinstance(plan.before, StockShape)
    config: dict[str, Any] = without_paths({k: v for k, v in source.items() if k != "auto_map"})
    values = config_values(plan.before, plan.after.layers, stock_config(source))
    part = next((config[key] for key in _TEXT_PARTS if isinstance(config.get(key), dict)), config)
    part.update(values)
    config.update(architectures=[plan.after.architecture.causal_lm], transformers_version=transformers.__version__)
    if plan.before.tied != plan.after.tied or shape_of(source).tied != plan.after.tied:
        config["tie_word_embeddings"] = plan.after.tied
    config.update(older_rope(config))
    if plan.config.dtype != "auto":
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = plan.config.dtype
    return config


def _global_widths(plan: FoldPlan) -> LayerShape:
    """The widest of each kind; the source's where the config would refuse them and every layer states its own."""
    layers = plan.after.layers
    heads = max(layer.heads for layer in layers)
    if plan.needs_remote_code and plan.written_as.heads_divide_hidden and plan.after.hidden % heads:
        layers = plan.before.layers
    return LayerShape(*(max(getattr(x, name) for x in layers) for name in ("intermediate", "heads", "kv_heads")))


def _new_biases(plan: FoldPlan) -> dict[str, bool]:
    """Config keys of biases that the source did not have."""
    family, before, after = plan.written_as, plan.before, plan.after
    if (before.qkv_bias, before.o_bias, before.mlp_bias) == (after.qkv_bias, after.o_bias, after.mlp_bias):
        return {}
    flags = {family.qkv_bias: after.qkv_bias, family.o_bias: after.o_bias, family.mlp_bias: after.mlp_bias}
    return {key: flag for key, flag in flags.items() if isinstance(key, str)}


def _widths(layer: LayerShape) -> dict[str, int]:
    return {key: getattr(layer, name) for key, name in WIDTH_KEYS.items()}


def _rope(source: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters as transformers 5 writes them and as everything older reads them."""
    merged = rope_parameters(stock_config(source))
    plain = merged["rope_type"] == "default"
    scaling = None if plain else {k: v for k, v in merged.items() if k != "rope_theta"}
    return {"rope_parameters": merged, "rope_theta": merged["rope_theta"], "rope_scaling": scaling}


def _rewritten(config: dict[str, Any], family: Architecture) -> dict[str, Any]:
    """The config of a Llama in the words of Mistral, every field spelled out since the defaults differ."""
    kept = {k: v for k, v in config.items() if k not in _LLAMA_ONLY}
    kept.update(model_type=family.model_type, sliding_window=None)
    filled = stock_config(config).to_dict()
    return {**{k: filled.get(k) for k in _SPELLED_OUT}, **kept}
