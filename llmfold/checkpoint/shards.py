"""Planning the output: which tensor goes to which byte of which safetensors file, before any is computed."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from llmfold.checkpoint.dtypes import SAFETENSORS_DTYPES
from llmfold.checkpoint.weights import SINGLE_FILE
from llmfold.errors import OutputError, UsageError


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, dtype (bf16, fp16 or fp32; int64 of a counter) and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length in the file, in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor and the ``offset``, in bytes from the start of ``shard``, at which its data begin."""

    spec: TensorSpec
    shard: str
    offset: int


@dataclass(frozen=True)
class Shard:
    """One file: its ``header`` (length field included), its tensors by offset and its total ``nbytes``."""

    name: str
    header: bytes
    tensors: tuple[PlacedTensor, ...]
    nbytes: int


@dataclass(frozen=True)
class ShardPlan:
    """All files of an output; ``index`` is the text of model.safetensors.index.json, None for a single file."""

    shards: tuple[Shard, ...]
    index: bytes | None

    @cached_property
    def tensors(self) -> dict[str, PlacedTensor]:
        """Tensor name -> its place."""
        return {tensor.spec.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def nbytes(self) -> int:
        """Length of all shards together, headers included."""
        return sum(shard.nbytes for shard in self.shards)


def plan_shards(specs: Sequence[TensorSpec], max_shard_bytes: int) -> ShardPlan:
    """Distribute ``specs`` in their order over files of at most ``max_shard_bytes`` of tensor data.

    A larger tensor gets a file of its own. Within a file wider dtypes come first, so that every tensor is aligned.

    Raises:
        UsageError: ``max_shard_bytes`` is not positive.
        OutputError: no tensors, a name given twice, or a dtype that is not a weight's.
    """
    if max_shard_bytes <= 0:
        raise UsageError(f"the maximum shard size must be positive, not {max_shard_bytes}")
    _check(specs)
    groups = _group(specs, max_shard_bytes)
    if len(groups) == 1:
        return ShardPlan((_lay_out(SINGLE_FILE, groups[0]),), None)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    shards = tuple(_lay_out(name, group) for name, group in zip(names, groups, strict=True))
    return ShardPlan(shards, _index(shards))


def _check(specs: Sequence[TensorSpec]) -> None:
    if not specs:
        raise OutputError("there are no tensors to write")
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen or spec.name == "__metadata__":
            raise OutputError(f"the output cannot hold tensor {spec.name!r}: its name is taken")
        if spec.dtype not in SAFETENSORS_DTYPES:
            raise OutputError(f"tensor {spec.name!r} cannot be written as {spec.dtype}: use bf16, fp16 or fp32")
        seen.add(spec.name)


def _group(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    used = 0
    for spec in specs:
        if groups[-1] and used + spec.nbytes > max_shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(spec)
        used += spec.nbytes
    return groups


def _lay_out(name: str, group: list[TensorSpec]) -> Shard:
    ordered = sorted(group, key=lambda spec: -spec.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts = []
    end = 0
    for spec in ordered:
        starts.append(end)
        end += spec.nbytes
        dtype = SAFETENSORS_DTYPES[spec.dtype]
        header[spec.name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [starts[-1], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    tensors = tuple(PlacedTensor(spec, name, len(prefix) + at) for spec, at in zip(ordered, starts, strict=True))
    return Shard(name, prefix, tensors, len(prefix) + end)


def _index(shards: tuple[Shard, ...]) -> bytes:
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    metadata = {
        "total_parameters": sum(tensor.spec.numel for tensor in tensors),
        "total_size": sum(tensor.spec.nbytes for tensor in tensors),
    }
    weight_map = {tensor.spec.name: tensor.shard for tensor in sorted(tensors, key=lambda tensor: tensor.spec.name)}
    return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n").encode()
