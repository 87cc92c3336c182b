"""A checkpoint before it is written, which faults are put into, and the sound models that it begins as."""

import copy
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reading import teach
from safetensors.torch import load_file, save
from support import CONFIG, INDEX, SINGLE, tiny_model
from torch import Tensor

GENERATION, TOKENIZER, TOKENIZER_CONFIG = "generation_config.json", "tokenizer.json", "tokenizer_config.json"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n".encode()


def json_bytes(value: object) -> bytes:
    """As people store small files."""
    return json.dumps(value, indent=2).encode()


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
        self.files[name] = json_bytes({**self.json(name), **fields})

    def write(self, folder: Path) -> Path:
        """Make the folder."""
        folder.mkdir()
        (folder / CONFIG).write_bytes(json_bytes(self.config))
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
            (folder / INDEX).write_bytes(json_bytes(index))


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
