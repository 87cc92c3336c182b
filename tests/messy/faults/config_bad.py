"""Values of config.json that are wrong, and files of that name that are none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support import CONFIG

from messy.draft import POINTER, Draft
from messy.faults.config_keys import GONE, set_config
from messy.faults.kind import Kind


def _raw_config(draft: Draft, value: Callable[[bytes], bytes]) -> None:
    def change(folder: Path) -> None:
        (folder / CONFIG).write_bytes(value((folder / CONFIG).read_bytes()))

    draft.last.append(change)


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
_GRAVE_CONFIGS: tuple[Mapping[str, Any], ...] = (
    *({key: GONE} for key in (*_SIZES, "model_type")),
    *({key: None} for key in (*_SIZES, "model_type")),
    *({key: str(number)} for key, number in (("vocab_size", 64), ("hidden_size", 32), ("num_hidden_layers", 2))),
    *({key: number} for key, number in (("vocab_size", 64.0), ("hidden_size", 32.0), ("num_hidden_layers", 2.0))),
    *({key: 0} for key in _SIZES),
    *({key: -1} for key in _SIZES),
    *({key: [2]} for key in _SIZES),
    {"vocab_size": 63},
    {"vocab_size": 65},
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 3},
    {"intermediate_size": 40},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": 0},
    {"num_key_value_heads": "2"},
    {"num_attention_heads": 3},
    {"num_attention_heads": True},
    {"head_dim": 16},
    {"head_dim": 0},
    {"head_dim": "8"},
    {"rms_norm_eps": "1e-6"},
    {"rms_norm_eps": [1e-6]},
    {"tie_word_embeddings": "true"},
    {"tie_word_embeddings": 1},
    {"tie_word_embeddings": "false"},
    {"attention_bias": True},
    {"attention_bias": "false"},
    {"mlp_bias": True},
    {"max_position_embeddings": "64"},
    {"max_position_embeddings": 0},
    {"max_position_embeddings": 64.0},
    {"hidden_act": "swish7"},
    {"hidden_act": ["silu"]},
    {"use_cache": "yes"},
    {"bos_token_id": "1"},
    {"bos_token_id": 1.0},
    {"eos_token_id": {"id": 2}},
    {"pad_token_id": -1},
    {"pad_token_id": 64},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["no such", "full_attention"]},
    {"layer_types": "full_attention"},
    {"sliding_window": "4"},
    {"sliding_window": 0},
    {"sliding_window": -1},
    {"dtype": "bf16"},
    {"torch_dtype": "torch.float32"},
    {"dtype": "auto"},
    {"dtype": 3},
    {"dtype": "int8"},
    {"dtype": "float64"},
    {"dtype": "FP32"},
    {"quantization_config": {}},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"compression_config": {"format": "x"}},
    {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
    {"auto_map": {"AutoConfig": "configuration_x.X"}},
    {"auto_map": "modeling_x.X"},
    {"architectures": ["LlamaForSequenceClassification"]},
    {"architectures": ["LlamaModel"]},
    {"architectures": 3},
    {"architectures": [None]},
    {"model_type": "Llama"},
    {"model_type": "no-such-family"},
    {"model_type": "gemma"},
    {"model_type": "bert"},
    {"model_type": ["llama"]},
    {"per_layer_config": {"0": {"intermediate_size": 48}}},
    {"per_layer_config": {"7": {"intermediate_size": 48}}},
    {"per_layer_config": []},
    {"initializer_range": "0.02"},
    {"attention_dropout": "0"},
    {"attention_dropout": None},
    {"attn_implementation": "no such"},
    {"_attn_implementation": "no such"},
    {"torchscript": True},
    {"output_attentions": True},
    {"id2label": 3},
    {"num_labels": "x"},
    {"text_config": {"hidden_size": 8}},
    {"text_config": 3},
    {"use_bidirectional_attention": True},
)
KINDS = {
    "a bad config key": Kind(set_config, _GRAVE_CONFIGS),
    "a config that is no object": Kind(
        _raw_config,
        (
            lambda raw: b"\xef\xbb\xbf" + raw,
            lambda raw: raw[:-2],
            lambda raw: raw.replace(b"{", b"// a comment\n{", 1),
            lambda raw: raw.replace(b"{", b'{"x": NaN,', 1),
            lambda raw: raw.replace(b"{", b'{"x": Infinity,', 1),
            lambda raw: raw.replace(b"{", b'{"vocab_size": 7,', 1),
            lambda raw: raw.replace(b"{", b'{"x": "\xff",', 1),
            lambda raw: raw.replace(b"\n", b"\r\n"),
            lambda raw: b"",
            lambda raw: b"[]",
            lambda raw: b"null",
            lambda raw: b"[" * 100_000,
            lambda raw: POINTER,
        ),
    ),
}
