"""Rules that shrink a config of transformers, whatever its family: sizes by names of keys, layers by their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

VOCABULARY = 96
LAYERS = 3
MOST_KINDS_OF_LAYERS = 4
_HEADS = 4

# Widths of different meaning differ, so that a tensor's shape tells what it is.
_SIZES = {
    32: "hidden_size d_model n_embd emb_dim embedding_dim embed_dim embedding_size word_embed_proj_dim lru_width "
    "attention_hidden_size backbone_hidden_size input_embedding_size output_embedding_size hidden_size_global "
    "ple_embed_dim dim_model_base encoder_cross_output_size pronunciation_embed_dim shape_embed_dim prompt_mid_dim "
    "cross_attention_hidden_size output_channels ext_pw_out_channel depthwise_separable_out_channel nemo_conv_channels "
    "base_channels",
    _HEADS: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_query_groups swa_num_attention_heads index_n_heads "
    "num_heads linear_num_heads linear_num_value_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "qk_rope_head_dim",
    2: "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_top_k moe_topk moe_k top_k_experts num_blocks "
    "num_global_layers",
    8: "head_dim d_head dim_head kv_channels attention_head_size swa_head_dim v_head_dim qk_nope_head_dim "
    "index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim d_kv global_head_dim rotary_dim "
    "query_pre_attn_scalar attention_head_dim state_size mamba_d_state ssm_state_size mamba_dt_rank time_step_rank "
    "laurel_rank hidden_size_per_layer_input router_hidden_size adapter_rank index_topk_blocks gated_norm_rank "
    "hc_lowrank d_rel num_mel_bins codebook_size",
    12: "qk_head_dim",
    48: "intermediate_size ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim n_inner d_inner dff dim_ff d_ff "
    "feed_forward_size dense_intermediate_size prefix_dense_intermediate_size mlp_dim",
    56: "intermediate_size_mlp",
    24: "moe_intermediate_size expert_ffn_hidden_size",
    40: "shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size "
    "shared_experts_intermediate_size",
    1: "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups first_k_dense_replace "
    "num_dense_layers moe_layer_start_index",
    16: "kv_lora_rank q_lora_rank o_lora_rank sliding_window attention_window_size sliding_window_size local_attention "
    "attention_chunk_size keep_window_size local_attention_window_len block_size mamba_chunk_size chunk_size "
    "index_block_size index_topk rel_extent",
    VOCABULARY: "vocab_size decoder_vocab_size unpadded_vocab_size pronunciation_vocab_size shape_vocab_size "
    "vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions max_seq_len max_target_positions max_source_positions context_length "
    "model_max_length n_ctx original_max_position_embeddings position_bias_max_distance",
    56 * 2: "image_size crop_size",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_layers_per_stack depth",
}
SIZES: Mapping[str, int] = {key: size for size, keys in _SIZES.items() for key in keys.split()}

# What flattens logits is kept, but milder.
_SCALES = {"logit_scale": 0.5, "logits_mup_width_multiplier": 2.0}
_IF_NULL = {"head_dim": 8, "num_key_value_heads": 2}
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_PER_LAYER = "per_layer_config"


def shrink(config: Config) -> Config:
    """A copy of a config as it is written to config.json, with its sub-configs, made small."""
    count, kept = _kept_layers(config)
    small = {key: _shrunk(key, value, config, count, kept) for key, value in config.items()}
    for key, size in _IF_NULL.items():
        if key in small and small[key] is None:
            small[key] = size
    if "kv_lora_rank" in small:
        _fit_latent_attention(small, config)
    if small.get("pad_token_id") is not None:
        small["pad_token_id"] = 0
    return small


def _shrunk(key: str, value: Any, config: Config, count: int | None, kept: list[int]) -> Any:
    if key == _PER_LAYER and value:
        return _kept_overrides(config, kept)
    if isinstance(value, dict) and key.endswith(("_config", "encoder", "decoder")):
        return shrink(value)
    if _is_per_layer(value, count):
        return [value[layer] for layer in kept]
    if key in _LAYER_COUNTS and isinstance(value, int):
        return len(kept)
    if key in _SCALES and isinstance(value, int | float):
        return _SCALES[key]
    if key.endswith(("_token_id", "_token_index")):
        return _inside_vocabulary(value)
    if key in SIZES and isinstance(value, int) and not isinstance(value, bool):
        return SIZES[key] if key == "vocab_size" else min(value, SIZES[key])
    return value


def _inside_vocabulary(token: Any) -> Any:
    if isinstance(token, list | tuple):
        return 1
    return 1 if isinstance(token, int) and token >= VOCABULARY else token


def _is_per_layer(value: Any, count: int | None) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and len(value) > 2


def _kept_layers(config: Config) -> tuple[int | None, list[int]]:
    """The number of layers and those to keep: the first of each kind, then the first ones, in their order."""
    count = next((config[key] for key in _LAYER_COUNTS if isinstance(config.get(key), int)), None)
    if count is None:
        return None, []
    lists = [value for value in config.values() if _is_per_layer(value, count)]
    overrides = _overrides(config)
    first: dict[str, int] = {}
    for layer in range(count):
        first.setdefault(repr(([values[layer] for values in lists], overrides.get(layer))), layer)
    kinds = list(first.values())[:MOST_KINDS_OF_LAYERS]
    others = [layer for layer in range(count) if layer not in kinds]
    return count, sorted(kinds + others[: max(0, LAYERS - len(kinds))])


def _overrides(config: Config) -> dict[int, Config]:
    return {int(layer): values for layer, values in (config.get(_PER_LAYER) or {}).items()}


def _kept_overrides(config: Config, kept: list[int]) -> Config:
    """Sizes of single layers, in the proportion that they have to those of the other layers."""
    heads = {"num_key_value_heads": _HEADS} if "kv_lora_rank" in config else {}
    sizes = {**SIZES, **heads}
    overrides = _overrides(config)

    def scaled(key: str, value: Any) -> Any:
        return sizes[key] * value // config[key] if key in sizes and isinstance(value, int) else value

    return {
        str(new): {key: scaled(key, value) for key, value in overrides[old].items()}
        for new, old in enumerate(kept)
        if old in overrides
    }


def _fit_latent_attention(small: Config, config: Config) -> None:
    """Latent attention has as many key-value heads as query heads; its head_dim names one of three widths."""
    if "num_key_value_heads" in small:
        small["num_key_value_heads"] = _HEADS
    if small.get("head_dim") is not None:
        widths = {config["qk_rope_head_dim"]: "qk_rope_head_dim", config.get("qk_head_dim"): "qk_head_dim"}
        small["head_dim"] = SIZES[widths.get(config["head_dim"], "head_dim")]
