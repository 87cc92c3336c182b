"""Write a random checkpoint of a known shape, with near-duplicate neurons and heads planted in every layer.

    python eval/synthetic_checkpoint.py llama-7b /data/llama-7b-random
    python eval/synthetic_checkpoint.py llama-3-70b /data/llama-70b-cut --layers 2

Sharded bfloat16 as the originals are; one tensor is held at a time, and the seed decides every bit. ``--layers`` cuts
the model short, ``--scale-down 64`` divides its widths and its vocabulary and keeps its numbers of heads. There is no
tokenizer: folding and sampling need none.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.checkpoint import ShardWriter, TensorSpec, plan_shards
from llmfold.models import LayerShape, ModelShape, Role, shape_of, tensor_name
from llmfold.sizes import parse_size

_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
_LLAMA_3 = {**_LLAMA, "vocab_size": 128_256, "rope_theta": 5e5, "max_position_embeddings": 8192}
_LLAMA_3 |= {"bos_token_id": 128_000, "eos_token_id": 128_001}


def _widths(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {**_LLAMA, **_widths(4096, 11_008, 32, 32, 32), "vocab_size": 32_000, "rms_norm_eps": 1e-6},
    "llama-2-13b": {**_LLAMA, **_widths(5120, 13_824, 40, 40, 40), "vocab_size": 32_000},
    "llama-3-8b": {**_LLAMA_3, **_widths(4096, 14_336, 32, 32, 8)},
    "llama-3-70b": {**_LLAMA_3, **_widths(8192, 28_672, 80, 64, 8)},
    "qwen2.5-72b": {
        **_widths(8192, 29_568, 80, 64, 8),
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 152_064,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32_768,
        "bos_token_id": 151_643,
        "eos_token_id": 151_643,
    },
}
_COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
    "use_cache": True,
}
SPREAD = 0.02
"""Standard deviation of weights, as models are initialised."""
NOISE = 0.1
"""What a near-duplicate differs by, relative to its original."""
UNITS_ALONG_ROWS = ("q", "k", "v", "q_bias", "k_bias", "v_bias", "gate", "up", "gate_bias", "up_bias")


def config_of(name: str, *, layers: int | None = None, scale_down: int = 1) -> dict[str, Any]:
    """config.json of a known shape, cut to ``layers`` and with widths divided by ``scale_down``."""
    config = {**_COMMON, **SHAPES[name]}
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        config[key] //= scale_down
    for key in ("bos_token_id", "eos_token_id"):
        config[key] %= config["vocab_size"]
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    if config["head_dim"] < 2 or config["head_dim"] % 2:
        raise SystemExit(
            f"--scale-down {scale_down} leaves heads of {config['head_dim']} dimensions: take a smaller one"
        )
    return config


class Twins:
    """Which units of a layer are near-duplicates of which others: a share of its neurons and of its KV groups."""

    def __init__(self, layer: LayerShape, share: float, generator: torch.Generator) -> None:
        self._layer = layer
        self._pairs = {n: _pairs(n, share, generator) for n in (layer.intermediate, layer.kv_heads)}

    def plant(self, role: Role, tensor: Tensor) -> None:
        """Overwrite the copies in a tensor of the layer (any float dtype) by their originals and a little noise."""
        units = self._layer.intermediate if role.split("_")[0] in ("gate", "up", "down") else self._layer.kv_heads
        if role in UNITS_ALONG_ROWS:
            view = tensor.view(units, -1)
        elif role in ("o", "down"):
            view = tensor.view(tensor.shape[0], units, -1).transpose(0, 1)
        else:
            return
        copies, originals = self._pairs[units]
        view[copies] = view[originals] + NOISE * view[copies]


def _pairs(units: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(units, generator=generator)
    count = int(share * units)
    return order[:count], order[count : 2 * count]


def tensors(shape: ModelShape, share: float, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model in the order of its file, bfloat16; each has a generator of its own."""
    roles = {
        tensor_name(i, role): (i, role) for i, layer in enumerate(shape.layers) for role, _ in shape.layer_roles(layer)
    }
    depth = (2 * len(shape.layers)) ** -0.5
    for number, (name, size) in enumerate(shape.stored_tensors().items()):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        tensor = torch.randn(size, generator=generator).mul_(SPREAD)
        if name.endswith("norm.weight"):
            tensor.add_(1)
        if name in roles:
            index, role = roles[name]
            of_layer = torch.Generator().manual_seed((seed * 7919 + index) % 2**63)
            Twins(shape.layers[index], share, of_layer).plant(role, tensor)
            if role in ("o", "down"):
                tensor.mul_(depth)
        yield name, tensor.bfloat16()


def write_checkpoint(
    folder: Path, config: dict[str, Any], *, share: float = 0.25, seed: int = 0, shard_bytes: int = 5_000_000_000
) -> Path:
    """Write a checkpoint of ``config`` with ``share`` of its units near-duplicates; returns ``folder``.

    The folder appears under its name once it is whole.
    """
    shape = shape_of(config)
    specs = [TensorSpec(name, torch.bfloat16, size) for name, size in shape.stored_tensors().items()]
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with ShardWriter(plan_shards(specs, shard_bytes), partial) as writer:
        writer.create()
        for name, tensor in tensors(shape, share, seed):
            writer.write(name, tensor)
        writer.sync()
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    marks = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    (partial / "generation_config.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)
    return folder


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--layers", type=int, help="cut the model to its first N layers")
    parser.add_argument("--scale-down", type=int, default=1, help="divide widths and vocabulary by this")
    parser.add_argument("--duplicates", type=float, default=0.25, help="share of units that are near-duplicates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-size", type=parse_size, default=5_000_000_000)
    arguments = parser.parse_args()
    if arguments.output.exists():
        sys.exit(f"{arguments.output} exists: choose another folder")
    start = time.perf_counter()
    config = config_of(arguments.shape, layers=arguments.layers, scale_down=arguments.scale_down)
    write_checkpoint(
        arguments.output,
        config,
        share=arguments.duplicates,
        seed=arguments.seed,
        shard_bytes=arguments.max_shard_size,
    )
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"{arguments.output}: {size / 1e9:.1f} GB in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
