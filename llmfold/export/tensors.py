"""Which tensors of a checkpoint go into a GGUF file, under which names, and what changes in them."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import gguf
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.engines.gguf_targets import Target
from llmfold.errors import CheckpointError
from llmfold.models import EMBEDDING, HEAD, ModelShape

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_SUFFIXES = (".weight", ".bias")
_ARCHITECTURES = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """A tensor of the file: its name there, the stored one that it is made of, its shape, and what is done to it."""

    name: str
    stored: str
    shape: tuple[int, ...]
    change: Change


def pieces_of(checkpoint: Checkpoint, shape: ModelShape, target: Target) -> list[Piece]:
    """The tensors of a model in the order of its files, which are read once.

    Raises:
        CheckpointError: a tensor for which the architecture has no place.
    """
    names = gguf.get_tensor_name_map(_ARCHITECTURES[target.architecture], len(shape.layers))
    pieces = []
    for info in checkpoint.tensors.values():
        meant = info.name
        if shape.tied and meant == HEAD:
            if EMBEDDING in checkpoint.tensors:
                continue
            meant = EMBEDDING
        name = names.get_name(meant, try_suffixes=_SUFFIXES)
        if name is None:
            raise CheckpointError(
                f"tensor {info.name!r} has no place in llama.cpp's architecture {target.architecture}: this model "
                "cannot be exported"
            )
        pieces.append(Piece(name, info.name, tuple(info.shape), _change(meant, shape, target)))
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
