"""Models whose GGUF files llama.cpp is asked about: real ones, folds of them, and random ones of other families."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import llmfold
from llmfold.demo import demo_folder

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TYPES = ("f32", "f16", "bf16", "q8_0")
ADAPTIVE = {"0-9": {"mlp": 0.1}, "10-19": {"mlp": 0.2, "attention": 0.34}}
"""Widths by layer for a model of 30 layers with three KV groups."""
_BASE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_ROPE}
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2, heads wider than the hidden state": (
        "Qwen2",
        {"head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 3},
    ),
    "qwen3": (
        "Qwen3",
        {"head_dim": 32, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen3, linear positions": ("Qwen3", {"rope_parameters": {"rope_type": "linear", **_ROPE}}),
    "qwen3, yarn": ("Qwen3", {"rope_parameters": {"rope_type": "yarn", **_ROPE}}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, positions as Llama 3": ("Llama", {"rope_parameters": _LLAMA3}),
    "mistral, 512 wide, 7 heads of 64": (
        "Mistral",
        {"hidden_size": 512, "head_dim": 64, "num_attention_heads": 7, "num_key_value_heads": 7, "sliding_window": 64},
    ),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "phi3 (q, k, v and gate, up fused)": ("Phi3", {}),
    "mixtral, 2 of 4 experts": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen3_moe, 3 of 12 experts": (
        "Qwen3Moe",
        {
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "head_dim": 32,
            "norm_topk_prob": True,
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """A model to export.

    Attributes:
        label: for the page.
        folder: of the checkpoint.
        pre: what ``--pre`` is given.
        tolerance: of log-probabilities of the float32 file, in nats.
        texts: that the tokenizers of both sides must read alike.
        types: of files to write.
    """

    label: str
    folder: Path
    pre: str | None = None
    tolerance: float = 1e-3
    texts: tuple[str, ...] = ()
    types: tuple[str, ...] = TYPES


def cases(work: Path, data: Path | None, smollm2: Path | None, texts: tuple[str, ...]) -> Iterator[Case]:
    """All models, made in ``work`` as they are asked for.

    Args:
        work: where folds and random models are written.
        data: folder of the project's data, for stories260K.
        smollm2: folder of SmolLM2-135M-Instruct.
        texts: for tokenizers of bytes. That of stories260K writes a space before a text unless one is there.
    """
    demo = demo_folder()
    yield Case("wiki-llama", demo, "gpt-2", texts=texts)
    narrower = _folded(demo, work / "wiki-folded", mlp_ratio=0.2, attention_ratio=0.25)
    yield Case("wiki-llama, 410 neurons, 6 of 8 heads", narrower, "gpt-2", texts=texts)
    if data is not None:
        stories = data / "models" / "stories260K"
        told = tuple(text.strip() for text in texts)
        yield Case("stories260K", stories, texts=told)
        grouped = _folded(stories, work / "stories-folded", attention_ratio=0.25)
        yield Case("stories260K, 3 of 4 KV groups", grouped, texts=told)
    for number, (label, (prefix, settings)) in enumerate(RANDOM.items()):
        folder = random_model(work / f"random-{number}", prefix, settings)
        # llama.cpp reads gelu from a table in half precision.
        yield Case(f"random {label}", folder, "gpt-2", tolerance=1e-2 if prefix == "Gemma" else 1e-3)
    if smollm2 is not None:
        yield Case("SmolLM2-135M-Instruct", smollm2, texts=texts)
        folds: dict[str, dict[str, Any]] = {
            "1229 of 1536 neurons": {"mlp_ratio": 0.2, "multiple_of": 1},
            "2 of 3 KV groups": {"attention_ratio": 0.34},
            "widths by layer": {"layers": ADAPTIVE},
        }
        for number, (label, options) in enumerate(folds.items()):
            folder = _folded(smollm2, work / f"smol-{number}", **options)
            yield Case(f"SmolLM2, {label}", folder, types=("f32", "q8_0"))


def _folded(model: Path, output: Path, **options: Any) -> Path:
    """A fold in float32 by the quickest method: what is asked here is whether both engines compute the same."""
    if not output.exists():
        quick = {"method": "magnitude", "fidelity_tokens": 0, "dtype": "float32", "quiet": True}
        llmfold.fold(str(model), output=str(output), **quick, **options)
    return output


def random_model(folder: Path, prefix: str, settings: dict[str, Any]) -> Path:
    """A random model that reads as wiki-llama does; every parameter is drawn, norms and biases too."""
    config = getattr(transformers, f"{prefix}Config")(**{**_BASE, **settings})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else 0.1 * noise)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(demo_folder() / name, folder)
    return folder
