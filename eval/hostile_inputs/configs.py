"""Contents of config.json."""

from typing import Any

from hypothesis import strategies as st

from hostile_inputs.junk import JUNK, json_files

ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3"]) | JUNK,
        "type": st.sampled_from(["linear", "su", "default"]) | JUNK,
        "rope_theta": st.sampled_from([10000.0, 0, -1.0, 1e308, float("inf"), float("nan")]) | JUNK,
        "factor": st.sampled_from([2.0, 0, -1]) | JUNK,
        **{key: st.sampled_from([1.0, 4.0, 0]) | JUNK for key in ("low_freq_factor", "high_freq_factor", "beta_fast")},
        **{key: st.lists(st.floats(), max_size=5) | JUNK for key in ("short_factor", "long_factor")},
        "original_max_position_embeddings": st.sampled_from([64, 0, -1]) | JUNK,
        "partial_rotary_factor": st.sampled_from([0.5, 0, 3]) | JUNK,
    },
)
CONFIG_KEYS = (
    *("torch_dtype", "dtype", "rope_scaling", "rope_parameters", "rope_theta", "per_layer_config", "auto_map"),
    *("quantization_config", "compression_config", "architectures", "layer_types", "sliding_window", "pretraining_tp"),
    *("use_sliding_window", "max_window_layers", "head_dim", "attention_bias", "mlp_bias", "to_dict", "__class__"),
    *("num_labels", "id2label", "problem_type", "return_dict", "attn_implementation", "_attn_implementation"),
    *("model_type", "hidden_act", "rms_norm_eps", "num_hidden_layers", "vocab_size", "tie_word_embeddings"),
    *("base_model_tp_plan", "attribute_map", "get_text_config", "validate", "_name_or_path", "generation_config"),
)
CONFIG_VALUES = st.one_of(
    JUNK,
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gpt2", "silu", "gelu", "bfloat16", "float64", "auto"]),
    st.sampled_from([1, 2, 4, 8, 16, 32, 48, 64, 128, 1e-6]),
    ROPE,
    st.dictionaries(st.sampled_from(["0", "1", "00", "-1", "9" * 5000, "٣"]), JUNK, max_size=2),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", [], {}, 3]), max_size=3),
)


def configs(base: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Contents of a config.json."""
    return json_files(base, CONFIG_KEYS, CONFIG_VALUES)
