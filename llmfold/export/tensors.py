"""Which tensors of a checkpoint go into a GGUF file, under which names, and what changes in them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor

from llmfold.checkpoint import Checkpoint, TensorInfo
from llmfold.engines.gguf_targets import Target
from llmfold.errors import CheckpointError
from llmfold.export.encoding import stored_type
from llmfold.models import EMBEDDING, HEAD, ModelShape

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_EXPERT = re.compile(r"(\.experts)\.(\d+)(\.\w+\.weight)$")
_ROUTER = "ffn_gate_inp.weight"
_SUFFIXES = (".weight", ".bias")
_ARCHITECTURES = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """A tensor of the file.

    Attributes:
        name: in the file.
        stored: the tensors that it is made of: one, or a matrix of every expert, in their order.
        shape: in the file; of experts' matrices a third axis, the first, counts them.
        change: what is done to each.
    """

    name: str
    stored: tuple[str, ...]
    shape: tuple[int, ...]
    change: Change

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """The tensor as it goes into the file, in the dtype that is stored."""
        found = [self.change(checkpoint.read(name)) for name in self.stored]
        return (found[0] if len(found) == 1 else torch.stack(found)).reshape(self.shape)

    def type(self, wanted: str) -> Any:
        """How it is stored where matrices are stored as ``wanted``; what chooses experts stays float32."""
        return stored_type(self.shape, "f32" if self.name.endswith(_ROUTER) else wanted)


def pieces_of(checkpoint: Checkpoint, shape: ModelShape, target: Target) -> list[Piece]:
    """The tensors of a model in the order of its files, which are read once.

    Raises:
        CheckpointError: a tensor for which the architecture has no place.
    """
    names = gguf.get_tensor_name_map(_ARCHITECTURES[target.architecture], len(shape.layers))
    parts: dict[str, list[TensorInfo]] = {}
    for info in checkpoint.tensors.values():
        meant = _EXPERT.sub(r"\1\3", info.name)
        if shape.tied and meant == HEAD:
            if EMBEDDING in checkpoint.tensors:
                continue
            meant = EMBEDDING
        parts.setdefault(meant, []).append(info)
    pieces = []
    for meant, infos in parts.items():
        name = names.get_name(meant, try_suffixes=_SUFFIXES)
        if name is None:
            raise CheckpointError(
                f"tensor {infos[0].name!r} has no place in llama.cpp's architecture {target.architecture}: this model "
                "cannot be exported"
            )
        stored = tuple(info.name for info in sorted(infos, key=lambda info: _expert(info.name) or 0))
        counted = () if _expert(stored[0]) is None else (len(stored),)
        pieces.append(Piece(name, stored, (*counted, *infos[0].shape), _change(meant, shape, target)))
    return pieces


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection from pairs of halves to pairs of neighbours.

    Args:
        rows: (heads * head_dim, …): of every head dimension i of its first half is turned with i of its second.
        heads: how many.

    Returns:
        The same shape: these two dimensions follow each other, as 2i and 2i + 1 of the head.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _expert(name: str) -> int | None:
    """Number of the expert that a stored tensor is of; None where it is of none."""
    found = _EXPERT.search(name)
    return int(found[2]) if found else None


def _change(name: str, shape: ModelShape, target: Target) -> Change:
    layer = _LAYER.search(name)
    projection = name.rsplit(".", 2)[-2]
    if layer and target.neighbours and projection in ("q_proj", "k_proj"):
        widths = shape.layers[int(layer[1])]
        heads = widths.heads if projection == "q_proj" else widths.kv_heads
        return lambda tensor: interleaved(tensor, heads)
    if target.gain and projection.endswith("norm"):
        return lambda tensor: tensor.float() + target.gain
    return lambda tensor: tensor
