"""Small checkpoints, sound and broken, for the tests of this folder."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYER = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def weights() -> dict[str, Tensor]:
    return {LAYER: torch.arange(12, dtype=torch.float32).reshape(3, 4), NORM: torch.ones(4)}


def write_config(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **fields}))
    return folder


def single_file(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    write_config(folder, **config)
    save_file(weights() if tensors is None else tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sharded(folder: Path, *shards: dict[str, Tensor]) -> Path:
    write_config(folder)
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_index(folder: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return weight_map


def raw_safetensors(path: Path, header: Any, nbytes: int) -> None:
    """Write a file with the given header (object or text) and ``nbytes`` zero bytes, without storing the zeros."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + nbytes)


def one_sentence(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and not text.endswith(".")
