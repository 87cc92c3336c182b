"""What single types need beyond the rules, and the types that stand apart, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A key that is left out of the config, so that the class derives it.
DERIVED = object()

_MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16}
_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
_SHARED = {"shared_intermediate_size": 40}
_GEMMA3N = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "intermediate_size": [48] * 4,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
}
# As in Gemma 4 31B; the smaller ones have inputs per layer, and share keys and values.
_GEMMA4 = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
_LLAMA4 = {"interleave_moe_layer_step": 2, "moe_layers": [1, 3]}
_QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "ple_embed_dim": 32,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
    "heads_per_ngram": 2,
    "eos_token_id": 2,
}
_MROPE = {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}}
_ADAPTER = {"adapter_in_dim": 32, "adapter_out_dim": 32}

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "bamba": {**_MAMBA_HEADS, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere2_moe": {**_DENSE_FIRST, "first_k_dense_replace": 1},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        }
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2},
        "ffn_config": {"moe_top_k": 2},
        "num_key_value_heads": DERIVED,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": {"head_dim": 16},
        "vision_config": _ADAPTER,
        "audio_config": {**_ADAPTER, "adapter_input_size": 32},
    },
    "dots3_note_text": {"head_dim": 16},
    "emu3": {
        "vq_config": {"channel_multiplier": [1, 1], "num_res_blocks": 1},
        "vocabulary_map": {"<image>": 90, "<|extra_200|>": 91}
        | {f"<|visual token {i:06d}|>": 80 + i for i in range(8)},
    },
    "falcon_h1": {**_MAMBA_HEADS, "mamba_d_ssm": 64},
    "gemma3n_text": _GEMMA3N,
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "granitemoe_swa": _SHARED,
    "granitemoehybrid": {**_MAMBA_HEADS, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "granitemoeshared": _SHARED,
    "inkling_text": _DENSE_FIRST,
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 4,
        "expert_layer_offset": 1,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "full_attn_idxs": [1],
        "intermediate_size": 72,
        "block_multiple_of": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama4": {"text_config": _LLAMA4},
    "llama4_text": _LLAMA4,
    "glm4v": _MROPE,
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE,
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "mellum": _DENSE_FIRST,
    "minimax_m3_vl_text": _DENSE_FIRST,
    "mllama": {
        "text_config": {"num_hidden_layers": 4, "cross_attention_layers": [2]},
        "vision_config": {
            "attention_heads": 4,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "supported_aspect_ratios": [[1, 1], [1, 2]],
            "max_num_tiles": 2,
        },
    },
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "num_buckets": 4,
        "hash_seed": 1,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "xlstm": {"num_blocks": 3},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 8,
        "num_key_value_heads": 4,
    },
}

# The text class of these is in no auto mapping: it loads from the checkpoint of the whole, as published ones are.
WHOLE_CLASS: Mapping[str, str] = {
    "emu3": "Emu3ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
}

# Here the causal-LM mapping finds no tensor of the language model in the whole, and leaves it random.
LOADS_AS_WHOLE_ONLY: tuple[str, ...] = ("emu3",)

_DEFAULT_FAILS = "the library builds no model of its own default config"
_NEEDS_TARGET = f"it drafts from the key-values of another model, and {_DEFAULT_FAILS}"

UNBUILDABLE: Mapping[str, str] = {
    "gemma3n": "its vision tower needs the packages timm and pillow; gemma3n_text has the same language model",
    "gemma4_assistant": _NEEDS_TARGET,
    "gemma4_unified_assistant": _NEEDS_TARGET,
    "musicgen": f"{_DEFAULT_FAILS}: the class of the mapping wants the decoder's config",
    "musicgen_melody": f"{_DEFAULT_FAILS}: the class of the mapping wants the decoder's config",
}

ENCODERS: tuple[str, ...] = (
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "git",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xlnet",
    "xmod",
)
SEQUENCE_TO_SEQUENCE: tuple[str, ...] = (
    "bart",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "marian",
    "mbart",
    "musicgen",
    "musicgen_melody",
    "mvp",
    "pegasus",
    "plbart",
    "prophetnet",
    "trocr",
    "whisper",
)
