"""Messy checkpoints, composed at random: a small sound model, and two to five of the faults that real folders have.

A fault is a kind and the number of one of its values, so that a composition is plain data: printed, stored in a file of
cases, and made again from either.
"""

import contextlib
import copy
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from reading import teach
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from support import CONFIG, FAMILIES, INDEX, SINGLE, tiny_model
from torch import Tensor

GENERATION, TOKENIZER, TOKENIZER_CONFIG = "generation_config.json", "tokenizer.json", "tokenizer_config.json"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n".encode()
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = "model.layers.1."
_GONE = "(no such key)"


@dataclass
class Draft:
    """A checkpoint before it is written.

    Attributes:
        config: content of config.json.
        tensors: weights by name, in the order they are stored in.
        files: content of all other files by name; ``None`` is a folder.
        shards: files that the weights are spread over.
        metadata: of the headers.
        index: told the index of the shards, which it may change.
        last: told the folder when all is written.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: dict[str, bytes | None]
    shards: int = 1
    metadata: dict[str, str] | None = field(default_factory=lambda: {"format": "pt"})
    index: list[Callable[[dict[str, Any]], object]] = field(default_factory=list)
    last: list[Callable[[Path], object]] = field(default_factory=list)

    def json(self, name: str) -> dict[str, Any]:
        """What a small file holds, ``{}`` where another fault has taken it away."""
        try:
            value = json.loads(self.files.get(name) or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def edit(self, name: str, fields: Mapping[str, Any]) -> None:
        """Set fields of a small JSON file."""
        self.files[name] = _json({**self.json(name), **fields})

    def write(self, folder: Path) -> Path:
        """Make the folder."""
        folder.mkdir()
        (folder / CONFIG).write_bytes(_json(self.config))
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if content is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(content)
        self._write_weights(folder)
        for change in self.last:
            change(folder)
        return folder

    def _write_weights(self, folder: Path) -> None:
        if self.shards == 1:
            (folder / SINGLE).write_bytes(save(self.tensors, metadata=self.metadata))
            return
        names = list(self.tensors)
        size = -(-len(names) // self.shards)
        places = {}
        for number, start in enumerate(range(0, len(names), size), 1):
            name = f"model-{number:05d}-of-{self.shards:05d}.safetensors"
            part = names[start : start + size]
            (folder / name).write_bytes(save({each: self.tensors[each] for each in part}, metadata=self.metadata))
            places.update(dict.fromkeys(part, name))
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        for change in self.index:
            change(index)
        if not (folder / INDEX).is_dir():
            (folder / INDEX).write_bytes(_json(index))


@dataclass(frozen=True)
class Base:
    """The sound model that faults are put into."""

    family: str
    tied: bool
    dtype: str

    def draft(self) -> Draft:
        """A copy of it to change."""
        return copy.deepcopy(_drawn(self))


@functools.cache
def _drawn(base: Base) -> Draft:
    with tempfile.TemporaryDirectory() as scratch:
        folder = teach(
            tiny_model(
                Path(scratch) / "m", base.family, dtype=getattr(torch, base.dtype), tie_word_embeddings=base.tied
            )
        )
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in (CONFIG, SINGLE)}
        return Draft(json.loads((folder / CONFIG).read_text()), load_file(folder / SINGLE), dict(files))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


# --- config.json ---


def _config(draft: Draft, value: Mapping[str, Any]) -> None:
    """Set keys of the config; those that are said to be gone are taken out."""
    draft.config.update(value)
    draft.config = {k: v for k, v in draft.config.items() if v != _GONE}


def _raw_config(draft: Draft, value: Callable[[bytes], bytes]) -> None:
    def change(folder: Path) -> None:
        (folder / CONFIG).write_bytes(value((folder / CONFIG).read_bytes()))

    draft.last.append(change)


_OPTIONAL = (
    *("head_dim", "num_key_value_heads", "rope_parameters", "max_position_embeddings", "tie_word_embeddings"),
    *("hidden_act", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "architectures", "dtype"),
    *("transformers_version", "use_cache", "initializer_range", "attention_bias", "mlp_bias", "pretraining_tp"),
    *("sliding_window", "layer_types", "use_sliding_window", "max_window_layers", "attention_dropout"),
)
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")


def _scaled(kind: str, **fields: object) -> dict[str, Any]:
    """Rotary scaling in the words of transformers 4."""
    return {"rope_parameters": _GONE, "rope_theta": 10000.0, "rope_scaling": {kind: fields.pop("named"), **fields}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_ROPES: tuple[Mapping[str, Any], ...] = (
    {"rope_parameters": _GONE, "rope_theta": 500000.0},
    {"rope_parameters": _GONE, "rope_theta": 500000},
    {"rope_theta": 500000.0},
    {"rope_parameters": {"rope_theta": 500000.0}},
    {"rope_parameters": {"rope_type": "default"}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "rope_scaling": None},
    {"rope_parameters": None, "rope_scaling": None},
    _scaled("type", named="linear", factor=2.0),
    _scaled("rope_type", named="linear", factor=2),
    _scaled("type", named="dynamic", factor=2.0),
    _scaled("rope_type", named="llama3", **_LLAMA3),
    _scaled("rope_type", named="yarn", factor=2.0, original_max_position_embeddings=64),
    _scaled("type", named="yarn", factor=2.0),
    _scaled("rope_type", named="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, factor=2.0),
    _scaled("type", named="default"),
    _scaled("rope_type", named="default", type="default"),
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "beta_fast": 32}},
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    {"rope_interleaved": False},
)
_GRAVE_ROPES: tuple[Mapping[str, Any], ...] = (
    _scaled("type", named="su", short_factor=[1.0] * 4, long_factor=[2.0] * 4),
    _scaled("type", named="mrope", mrope_section=[1, 1, 2]),
    _scaled("rope_type", named="no such"),
    _scaled("rope_type", named="llama3", factor=8.0),
    _scaled("rope_type", named="linear", factor="2"),
    {"rope_parameters": "default"},
    {"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}},
    {"rope_scaling": [2.0]},
    {"rope_scaling": "linear"},
    {"rope_theta": None, "rope_parameters": _GONE},
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
    {"dtype": _GONE, "torch_dtype": "float32"},
    {"dtype": _GONE, "torch_dtype": "bfloat16"},
    {"dtype": "float32", "torch_dtype": "bfloat16"},
    {"dtype": "half"},
    {"dtype": None, "torch_dtype": "float16"},
    {"dtype": {"": "float32"}},
)
_GRAVE_CONFIGS: tuple[Mapping[str, Any], ...] = (
    *({key: _GONE} for key in (*_SIZES, "model_type")),
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


# --- weights ---


def _cast(draft: Draft, value: tuple[str, torch.dtype]) -> None:
    ending, dtype = value
    for name, tensor in draft.tensors.items():
        if name.endswith(ending):
            draft.tensors[name] = tensor.to(dtype)


def _rename(draft: Draft, value: Callable[[str], str]) -> None:
    draft.tensors = {value(name): tensor for name, tensor in draft.tensors.items()}


def _drop(draft: Draft, value: str) -> None:
    draft.tensors.pop(value, None)


def _add(draft: Draft, value: tuple[str, Tensor | str]) -> None:
    """Add a tensor: one that is given, or a copy of another."""
    name, tensor = value
    new = draft.tensors.get(tensor) if isinstance(tensor, str) else tensor
    if new is not None:
        draft.tensors[name] = new.clone()


def _change(draft: Draft, value: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    name, change = value
    if name in draft.tensors:
        draft.tensors[name] = change(draft.tensors[name].clone()).contiguous()


def _head(draft: Draft, value: Callable[[Tensor], Tensor]) -> None:
    """Store a head that is made of the embedding, whatever the flag says."""
    if EMBEDDING in draft.tensors:
        draft.tensors[HEAD] = value(draft.tensors[EMBEDDING].clone()).contiguous()


def _put(number: float, place: int = 3) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[place % tensor.numel()] = number
        return tensor

    return change


_DOWN, _GATE, _Q, _IN = (
    f"{_LAYER}{part}.weight" for part in ("mlp.down_proj", "mlp.gate_proj", "self_attn.q_proj", "input_layernorm")
)


def _shards(draft: Draft, value: int) -> None:
    draft.shards = value


def _index(draft: Draft, value: Callable[[dict[str, Any]], object]) -> None:
    draft.shards = max(draft.shards, 2)
    draft.index.append(value)


def _listed(name: str, file: str | None) -> Callable[[dict[str, Any]], object]:
    """An index that says of a tensor that it is in another file; in none, it is not listed; ``""`` is any of them."""

    def change(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        if not isinstance(places, dict) or not places:
            return
        if file is None:
            places.pop(name, None)
        else:
            places[name] = file or sorted(map(str, places.values()))[0]

    return change


def _metadata(draft: Draft, value: dict[str, str] | None) -> None:
    draft.metadata = value


def _folder(draft: Draft, value: Callable[[Path], object]) -> None:
    draft.last.append(value)


def _weights_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]


def _move(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in _weights_of(folder)[:1]:
            path.rename(folder / name)

    return change


def _copied(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in _weights_of(folder)[:1]:
            (folder / name).write_bytes(path.read_bytes())

    return change


def _rewrite(change_bytes: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in _weights_of(folder)[-1:]:
            path.write_bytes(change_bytes(path.read_bytes()))

    return change


def _linked_outside(folder: Path) -> None:
    for path in _weights_of(folder)[:1]:
        target = folder.parent / f"{folder.name}-outside-{path.name}"
        path.rename(target)
        path.symlink_to(target)


def _linked_inside(folder: Path) -> None:
    for path in _weights_of(folder)[:1]:
        target = folder / ".blob"
        path.rename(target)
        path.symlink_to(target.name)


def _pickled(folder: Path) -> None:
    for path in _weights_of(folder):
        with contextlib.suppress(SafetensorError):  # another fault has been there
            torch.save(load_file(path), folder / "pytorch_model.bin")
        path.unlink()


# --- other files ---


def _file(draft: Draft, value: tuple[str, bytes | None]) -> None:
    draft.files[value[0]] = value[1]


def _no_file(draft: Draft, value: Sequence[str]) -> None:
    for name in value:
        draft.files.pop(name, None)


def _edit(draft: Draft, value: tuple[str, Mapping[str, Any]]) -> None:
    if value[0] in draft.files and draft.files[value[0]] is not None:
        draft.edit(*value)


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Draft], None]:
    def edit(draft: Draft) -> None:
        content = draft.json(TOKENIZER)
        if content.get("model"):
            change(content)
            draft.files[TOKENIZER] = _json(content)

    return edit


def _call(draft: Draft, value: Callable[[Draft], None]) -> None:
    value(draft)


def _more_ids(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["z" * 9] = 99


def _added(content: dict[str, Any]) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": 40, "content": "<|im_start|>", **flags})


_LETTERS_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json")
_FILES: tuple[tuple[str, bytes | None], ...] = (
    ("README.md", b"---\nlicense: mit\n---\n# Hello\n"),
    ("README.md", b"---\nlicense: [mit\n---\n"),
    ("README.md", b"---\nno end"),
    ("README.md", b"\xff\xfe\x00"),
    ("README.md", None),
    ("LICENSE", b"MIT"),
    ("LICENSE", None),
    (".DS_Store", b"\x00\x01"),
    ("training_args.bin", b"pickle"),
    ("optimizer.pt", b"pickle"),
    ("trainer_state.json", b"{}"),
    ("model.gguf", b"GGUF"),
    ("pytorch_model.bin", b"pickle"),
    ("pytorch_model.bin.index.json", b"{}"),
    ("consolidated.00.pth", b"pickle"),
    ("params.json", b"{}"),
    ("modeling_x.py", b"raise SystemExit('run')"),
    ("tokenization_x.py", b"raise SystemExit('run')"),
    ("configuration_x.py", b"raise SystemExit('run')"),
    ("preprocessor_config.json", b"{"),
    ("chat_template.jinja", b"{% for m in messages %}{{ m.content }}{% endfor %}"),
    ("chat_template.jinja", b"{% for"),
    ("chat_template.json", b'{"chat_template": "{{ messages }}"}'),
    ("additional_chat_templates/rag.jinja", b"{{ messages }}"),
    ("added_tokens.json", b"{}"),
    ("added_tokens.json", b'{"<x>": 50}'),
    ("special_tokens_map.json", b'{"bos_token": {"content": "<s>"}, "additional_special_tokens": ["a"]}'),
    ("special_tokens_map.json", b"{}"),
    ("merges.txt", b"#version: 0.2\na b\n"),
    ("vocab.json", b'{"a": 0, "b": 1, "ab": 2}'),
    ("tekken.json", b"{}"),
    ("sub/model.safetensors", b"x"),
    ("original/params.json", b"{}"),
    ("adapter_model.bin", b"x"),
    ("generation_config_for_text_generation.json", b"{}"),
    ("model.safetensors.index.json.bak", b"{"),
    ("config.json.orig", b"{"),
    ("recipe.yaml", b"a: ["),
)
_GRAVE_FILES: tuple[tuple[str, bytes | None], ...] = (
    ("adapter_config.json", b'{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}'),
    ("adapter_config.json", b"{}"),
    ("adapter_config.json", b"{"),
    (TOKENIZER, b"{}"),
    (TOKENIZER, b"{"),
    (TOKENIZER, b"[]"),
    (TOKENIZER, b""),
    (TOKENIZER, POINTER),
    (TOKENIZER, None),
    (TOKENIZER_CONFIG, b"[]"),
    (TOKENIZER_CONFIG, b"null"),
    (TOKENIZER_CONFIG, b"{"),
    (TOKENIZER_CONFIG, b"\xff"),
    (TOKENIZER_CONFIG, POINTER),
    (TOKENIZER_CONFIG, None),
    ("tokenizer.model", b"not sentencepiece"),
    ("tokenizer.model", POINTER),
    ("special_tokens_map.json", b"{"),
    ("special_tokens_map.json", b"[]"),
    ("added_tokens.json", b"["),
    ("vocab.json", b"{"),
    (GENERATION, b"{"),
    (GENERATION, b"[]"),
    (GENERATION, b"null"),
    (GENERATION, b'"x"'),
    (GENERATION, b""),
    (GENERATION, b"\xff"),
    (GENERATION, POINTER),
    (GENERATION, None),
    (INDEX, b"{}"),
    (INDEX, b"{"),
    (INDEX, b'{"weight_map": {}}'),
    (INDEX, b'{"weight_map": {"model.norm.weight": "absent.safetensors"}}'),
    (INDEX, b'{"weight_map": {"model.norm.weight": "../m.safetensors"}}'),
    (INDEX, None),
    ("chat_template.jinja", None),
    ("chat_template.jinja", b"\xff\xfe"),
)
_GENERATIONS: tuple[Mapping[str, Any], ...] = (
    {"bos_token_id": -1, "eos_token_id": 999},
    {"bos_token_id": [7, 8]},
    {"eos_token_id": [2, 3], "pad_token_id": 0},
    {"do_sample": False, "temperature": 0.5, "top_p": 0.9},
    {"do_sample": True, "temperature": 0.6, "top_k": 20},
    {"temperature": 0.0},
    {"max_length": 4096},
    {"max_new_tokens": 64},
    {"_name_or_path": "/home/somebody/model"},
    {"transformers_version": "4.30.0", "_from_model_config": True},
    {"cache_implementation": "hybrid"},
    {"suppress_tokens": [3], "forced_bos_token_id": 1},
    {"no such option": {"x": [1]}},
    {"num_beams": 4, "early_stopping": True},
)
_GRAVE_GENERATIONS: tuple[Mapping[str, Any], ...] = (
    {"bos_token_id": "1"},
    {"max_length": "x"},
    {"temperature": -1},
    {"cache_implementation": "no such"},
    {"early_stopping": 3},
    {"num_return_sequences": 3},
    {"watermarking_config": {"x": 1}},
    {"pad_token_id": -5},
    {"compile_config": 3},
)
_TOKENIZER_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"tokenizer_class": "LlamaTokenizer"},
    {"tokenizer_class": "LlamaTokenizerFast", "legacy": False},
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "Qwen2Tokenizer"},
    {"tokenizer_class": "GPT2TokenizerFast"},
    {"tokenizer_class": None},
    {"padding_side": "left", "truncation_side": "left"},
    {"add_bos_token": False, "add_eos_token": True},
    {"add_prefix_space": True},
    {"model_max_length": 10**30},
    {"model_max_length": 16},
    {"clean_up_tokenization_spaces": True},
    {"name_or_path": "/home/somebody/model", "tokenizer_file": "/home/somebody/tokenizer.json"},
    {"chat_template": "{{ messages }}"},
    {"chat_template": [{"name": "default", "template": "{{ messages }}"}]},
    {"pad_token": "</s>", "unk_token": "<unk>"},
    {"pad_token": "<|new|>"},
    {"bos_token": None},
    {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False}},
    {"additional_special_tokens": ["a", "<|new|>"]},
    {"added_tokens_decoder": {"45": {"content": "<|x|>", "special": True}}},
    {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}},
    {"sp_model_kwargs": {}, "use_default_system_prompt": False},
)
_GRAVE_TOKENIZER_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"tokenizer_class": "NoSuchTokenizer"},
    {"tokenizer_class": "BertTokenizer"},
    {"tokenizer_class": 3},
    {"model_max_length": "long"},
    {"chat_template": 3},
    {"padding_side": "middle"},
    {"added_tokens_decoder": {"x": {}}},
    {"extra_special_tokens": ["a"]},
    {"extra_special_tokens": {"image_token": "<image>"}},
)

Apply = Callable[[Draft, Any], None]
_HALF = torch.float16


@dataclass(frozen=True)
class Kind:
    """One kind of fault: how it is put into a draft, and the values that it may have."""

    apply: Apply
    values: tuple[Any, ...]


def _pairs(name: str, values: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple((name, value) for value in values)


LIGHT: dict[str, Kind] = {
    "a config key is missing": Kind(_config, tuple({key: _GONE} for key in _OPTIONAL)),
    "a config key is null": Kind(_config, tuple({key: None} for key in _OPTIONAL)),
    "a config key is left over or unusual": Kind(_config, _LEFTOVERS),
    "rotary positions": Kind(_config, _ROPES),
    "the dtype of the config": Kind(_config, _DTYPES),
    "tensors in another dtype": Kind(
        _cast,
        (
            *(("", dtype) for dtype in (torch.float32, torch.bfloat16, _HALF)),
            *((ending, _HALF) for ending in ("norm.weight", "down_proj.weight", EMBEDDING)),
            *((ending, torch.float32) for ending in ("norm.weight", HEAD)),
        ),
    ),
    "the head": Kind(
        _head,
        (
            lambda table: table,
            lambda table: table.flip(0),
            lambda table: table.half(),
            lambda table: table * (1 + 2**-6),
            _put(1.0),
            _put(-0.0),
        ),
    ),
    "the flag of the head": Kind(
        _config, ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"tie_word_embeddings": _GONE})
    ),
    "names of tensors": Kind(
        _rename,
        (lambda name: name.removeprefix("model."), lambda name: f"model.{name}", lambda name: name),
    ),
    "old buffers": Kind(
        _add,
        (
            (f"{_LAYER}self_attn.rotary_emb.inv_freq", torch.ones(4)),
            (f"{_LAYER}self_attn.rotary_emb.cos_cached", torch.ones(1, 1, 8, 8)),
            ("model.rotary_emb.inv_freq", torch.ones(4)),
            ("rotary_emb.inv_freq", torch.ones(4)),
        ),
    ),
    "shards": Kind(_shards, (2, 3, 5)),
    "the index": Kind(
        _index,
        (
            _listed(HEAD, ""),
            _listed(NORM, ""),
            _listed(_DOWN, None),
            _listed("no.such.tensor", ""),
            lambda index: index.pop("metadata", None),
            lambda index: index.update(metadata={}),
            lambda index: index.update(metadata=None),
            lambda index: index.update(metadata={"total_size": "many"}),
            lambda index: index.update(more=1),
        ),
    ),
    "metadata of the header": Kind(_metadata, (None, {}, {"format": "pt", "more": "x"}, {"format": "np"})),
    "extreme values": Kind(
        _change,
        (
            (_GATE, torch.zeros_like),
            (_IN, torch.zeros_like),
            (EMBEDDING, lambda table: table * 100),
            (_DOWN, lambda weight: weight * 1e4),
            (_Q, lambda weight: weight * 1e-30),
            (EMBEDDING, _put(0.0)),
        ),
    ),
    "a file beside": Kind(_file, _FILES),
    "another name of weights beside": Kind(
        _folder, tuple(map(_copied, ("model.fp16.safetensors", "consolidated.safetensors", "model-old.safetensors")))
    ),
    "links": Kind(_folder, (_linked_inside,)),
    "no generation config": Kind(_no_file, ((GENERATION,),)),
    "the generation config": Kind(_edit, _pairs(GENERATION, _GENERATIONS)),
    "no tokenizer": Kind(
        _no_file, (_LETTERS_FILES, (TOKENIZER,), (TOKENIZER_CONFIG,), (TOKENIZER_CONFIG, "special_tokens_map.json"))
    ),
    "settings of the tokenizer": Kind(_edit, _pairs(TOKENIZER_CONFIG, _TOKENIZER_SETTINGS)),
    "ids of the tokenizer": Kind(_call, (_tokenizer(_more_ids), _tokenizer(_added))),
}
"""What stock transformers mostly loads."""
GRAVE: dict[str, Kind] = {
    "a bad config key": Kind(_config, _GRAVE_CONFIGS),
    "bad rotary positions": Kind(_config, _GRAVE_ROPES),
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
    "bad dtypes of tensors": Kind(
        _cast,
        (
            ("", torch.float64),
            (_DOWN, torch.float64),
            (_DOWN, torch.int8),
            (_DOWN, torch.float8_e4m3fn),
            (NORM, torch.int64),
            (NORM, torch.bool),
        ),
    ),
    "prefixes of tensors": Kind(
        _rename,
        (
            lambda name: f"base_model.model.{name}",
            lambda name: f"module.{name}",
            lambda name: f"_orig_mod.{name}",
            lambda name: f"language_model.{name}",
            lambda name: f"transformer.{name}",
            lambda name: name.replace("model.", "model.language_model.", 1),
            lambda name: name.replace("model.", "transformer.", 1),
            lambda name: name.replace(".weight", ".gamma") if name.endswith("norm.weight") else name,
            lambda name: name.replace("norm.weight", "norm.scale"),
            lambda name: name.replace("down_proj", "w2"),
            lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
            str.upper,
        ),
    ),
    "a tensor is missing": Kind(_drop, (EMBEDDING, HEAD, NORM, _DOWN, _GATE, _Q, _IN)),
    "a tensor too many": Kind(
        _add,
        (
            ("v_head.summary.weight", torch.ones(1, 32)),
            ("score.weight", torch.ones(1, 32)),
            ("lm_head.bias", torch.zeros(64)),
            ("model.layers.2.input_layernorm.weight", torch.ones(32)),
            ("model.layers.01.input_layernorm.weight", torch.ones(32)),
            ("norm.weight", torch.ones(32)),
            ("embed_tokens.weight", EMBEDDING),
            ("model.lm_head.weight", HEAD),
            (f"{_LAYER}self_attn.q_proj.bias", torch.zeros(32)),
            (f"{_LAYER}self_attn.o_proj.bias", torch.ones(32)),
            (f"{_LAYER}mlp.down_proj.bias", torch.zeros(32)),
            (f"{_LAYER}mlp.down_proj.scales", torch.ones(32)),
            (f"{_LAYER}self_attn.q_norm.weight", torch.ones(8)),
            (f"{_LAYER}self_attn.q_proj.lora_A.weight", torch.ones(2, 32)),
            ("model.embed_positions.weight", torch.ones(64, 32)),
            ("empty", torch.zeros(0)),
            ("", torch.zeros(1)),
            ("model.norm.weight ", torch.zeros(1)),
        ),
    ),
    "a bad tensor": Kind(
        _change,
        (
            (_DOWN, _put(float("nan"))),
            (EMBEDDING, _put(float("inf"))),
            (EMBEDDING, _put(float("nan"), 40 * 32)),
            (NORM, _put(float("-inf"))),
            (_DOWN, lambda weight: weight.T),
            (_Q, lambda weight: weight[:16]),
            (_Q, lambda weight: weight.reshape(-1)),
            (NORM, lambda weight: weight[None]),
            (NORM, lambda weight: weight[:1]),
            (NORM, lambda weight: weight.new_ones(())),
            (EMBEDDING, lambda table: torch.cat([table, table[:8]])),
            (EMBEDDING, lambda table: table[:60]),
            (HEAD, lambda table: torch.cat([table, table[:8]])),
            (_DOWN, lambda weight: weight * 1e30),
        ),
    ),
    "a bad index": Kind(
        _index,
        (
            _listed(NORM, "absent.safetensors"),
            _listed("no.such.tensor", "absent.safetensors"),
            _listed(NORM, "../outside.safetensors"),
            _listed(NORM, "/etc/hostname"),
            _listed(NORM, "pytorch_model.bin"),
            lambda index: index.pop("weight_map", None),
            lambda index: index.update(weight_map={}),
            lambda index: index.update(weight_map=[]),
            lambda index: index.update(weight_map={NORM: 3}),
        ),
    ),
    "bad metadata of the header": Kind(_metadata, ({"format": "tf"}, {"format": "mlx"}, {"format": "flax"})),
    "files of weights": Kind(
        _folder,
        (
            *map(_move, ("pytorch_model.safetensors", "weights.safetensors", "MODEL.safetensors")),
            *map(_copied, (SINGLE, "adapter_model.safetensors")),
            *map(
                _rewrite,
                (
                    lambda raw: raw[:-7],
                    lambda raw: raw + b"\0",
                    lambda raw: raw[:5],
                    lambda raw: b"",
                    lambda raw: POINTER,
                    lambda raw: b"PK\x03\x04" + raw,
                ),
            ),
            _linked_outside,
            _pickled,
        ),
    ),
    "a bad file beside": Kind(_file, _GRAVE_FILES),
    "a bad generation config": Kind(_edit, _pairs(GENERATION, _GRAVE_GENERATIONS)),
    "bad settings of the tokenizer": Kind(_edit, _pairs(TOKENIZER_CONFIG, _GRAVE_TOKENIZER_SETTINGS)),
}
"""What stock transformers mostly refuses, or loads as another model."""
KINDS = {**LIGHT, **GRAVE}
Fault = tuple[str, int]


@dataclass(frozen=True)
class Composition:
    """A sound model and the faults that are put into it, in their order."""

    base: Base
    faults: tuple[Fault, ...]

    def write(self, folder: Path) -> Path:
        """Make the messy checkpoint."""
        draft = self.base.draft()
        for kind, number in self.faults:
            KINDS[kind].apply(draft, KINDS[kind].values[number])
        return draft.write(folder)

    def to_json(self) -> dict[str, Any]:
        """As a file of cases keeps it."""
        return {"base": [self.base.family, self.base.tied, self.base.dtype], "faults": [list(f) for f in self.faults]}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Composition":
        """From :meth:`to_json`."""
        return cls(Base(*stored["base"]), tuple((str(kind), int(number)) for kind, number in stored["faults"]))


def _faults(kinds: Mapping[str, Kind]) -> st.SearchStrategy[Fault]:
    every = [(kind, number) for kind, each in kinds.items() for number in range(len(each.values))]
    by_kind = st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.integers(0, len(kinds[kind].values) - 1))
    )
    return by_kind | st.sampled_from(every)


@st.composite
def compositions(draw: st.DrawFn) -> Composition:
    """Two to five faults in a model of any family; every other composition has grave ones among them."""
    base = Base(
        draw(st.sampled_from(FAMILIES)), draw(st.booleans()), draw(st.sampled_from(("float32", "float32", "bfloat16")))
    )
    grave = draw(st.lists(_faults(GRAVE), max_size=2, unique=True)) if draw(st.booleans()) else []
    light = draw(st.lists(_faults(LIGHT), min_size=max(0, 2 - len(grave)), max_size=5 - len(grave), unique=True))
    return Composition(base, tuple(draw(st.permutations([*light, *grave]))))
