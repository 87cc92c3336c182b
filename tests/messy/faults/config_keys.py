"""Keys of config.json that are missing, left over or unusual, which stock transformers mostly bears."""

from collections.abc import Mapping
from typing import Any

from messy.draft import Draft
from messy.faults.kind import Kind

GONE = "(no such key)"


def set_config(draft: Draft, value: Mapping[str, Any]) -> None:
    """Set keys of the config; those that are said to be gone are taken out."""
    draft.config.update(value)
    draft.config = {k: v for k, v in draft.config.items() if v != GONE}


_OPTIONAL = (
    *("head_dim", "num_key_value_heads", "rope_parameters", "max_position_embeddings", "tie_word_embeddings"),
    *("hidden_act", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "architectures", "dtype"),
    *("transformers_version", "use_cache", "initializer_range", "attention_bias", "mlp_bias", "pretraining_tp"),
    *("sliding_window", "layer_types", "use_sliding_window", "max_window_layers", "attention_dropout"),
)
_LEFTOVERS: tuple[Mapping[str, Any], ...] = (
    {"sliding_window": 4},
    {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    {"sliding_window": 4096},
    {"use_sliding_window": False, "sliding_window": 3},
    {"layer_types": ["full_attention", "full_attention"]},
    {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "use_sliding_window": True},
    {"max_window_layers": 28},
    {"pretraining_tp": 1},
    {"pretraining_tp": 4},
    {"attention_dropout": 0.1},
    {"attention_bias": False, "mlp_bias": False},
    {"_name_or_path": "/home/somebody/model"},
    {"_commit_hash": "0" * 40},
    {"auto_map": {"AutoModel": "modeling_x.X"}},
    {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}},
    {"is_decoder": True},
    {"add_cross_attention": False},
    {"num_labels": 3},
    {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}},
    {"problem_type": "regression"},
    {"output_attentions": False, "output_hidden_states": False},
    {"output_hidden_states": True},
    {"return_dict": False},
    {"return_dict": True, "torchscript": False},
    {"use_cache": False},
    {"chunk_size_feed_forward": 2},
    {"pruned_heads": {}},
    {"attn_implementation": "sdpa"},
    {"_attn_implementation": "eager"},
    {"_attn_implementation_autoset": True},
    {"embd_pdrop": 0.1, "resid_pdrop": 0.1},
    {"quantization_config": None},
    {"compression_config": {}},
    {"num_experts": 4},
    {"unsloth_fixed": True, "unsloth_version": "2025.1"},
    {"temperature": 0.6, "top_p": 0.9, "do_sample": True},
    {"max_length": 128},
    {"suppress_tokens": [3]},
    {"tokenizer_class": "LlamaTokenizer"},
    {"text_config": {}},
    {"vision_config": {"hidden_size": 8}},
    {"task_specific_params": {"text-generation": {"do_sample": True}}},
    {"rope_dim": None, "logits_to_keep": 0},
    {"transformers_version": "4.31.0"},
    {"architectures": ["LlamaForCausalLM"]},
    {"architectures": []},
    {"architectures": "LlamaForCausalLM"},
    {"hidden_act": "swish"},
    {"hidden_act": "gelu"},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"hidden_act": "relu"},
    {"rms_norm_eps": 1e-5},
    {"rms_norm_eps": 0},
    {"rms_norm_eps": 1},
    {"max_position_embeddings": 64},
    {"max_position_embeddings": 10_000_000},
    {"initializer_range": 0},
    {"bos_token_id": -1},
    {"bos_token_id": 64, "eos_token_id": 9999},
    {"bos_token_id": [1, 2]},
    {"eos_token_id": [2, 3]},
    {"pad_token_id": 0},
    {"pad_token_id": 63},
    {"name": "ünï ☃"},
)
_DTYPES: tuple[Mapping[str, Any], ...] = (
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"dtype": GONE, "torch_dtype": "float32"},
    {"dtype": GONE, "torch_dtype": "bfloat16"},
    {"dtype": "float32", "torch_dtype": "bfloat16"},
    {"dtype": "half"},
    {"dtype": None, "torch_dtype": "float16"},
    {"dtype": {"": "float32"}},
)
KINDS = {
    "a config key is missing": Kind(set_config, tuple({key: GONE} for key in _OPTIONAL)),
    "a config key is null": Kind(set_config, tuple({key: None} for key in _OPTIONAL)),
    "a config key is left over or unusual": Kind(set_config, _LEFTOVERS),
    "the dtype of the config": Kind(set_config, _DTYPES),
    "the flag of the head": Kind(
        set_config, ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"tie_word_embeddings": GONE})
    ),
}
