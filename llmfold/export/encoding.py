"""Weights as GGUF stores them."""

import math
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from llmfold.errors import CheckpointError

BLOCK = 32
"""Weights of a row that Q8_0 gives one scale."""
_AT_ONCE = 1 << 22
"""Weights that are converted together."""
_OF_DTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_TYPES = {name: getattr(gguf.GGMLQuantizationType, name.upper()) for name in ("f32", "f16", "bf16", "q8_0")}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def resolved_type(wanted: str, dtype: torch.dtype) -> str:
    """The type that ``auto`` stands for: that of most weights; any other as it is."""
    return _OF_DTYPE.get(dtype, "f32") if wanted == "auto" else wanted


def stored_type(shape: tuple[int, ...], wanted: str) -> Any:
    """The type of a tensor: vectors stay float32, and rows that Q8_0 cannot cut are float16."""
    if len(shape) < 2:
        return _TYPES["f32"]
    if wanted == "q8_0" and shape[-1] % BLOCK:
        return _TYPES["f16"]
    return _TYPES[wanted]


def stored_bytes(shape: tuple[int, ...], kind: Any) -> int:
    """Bytes of a tensor in a type."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(weights) * int(size)


def encode(tensor: Tensor, kind: Any, name: str) -> Any:
    """Convert a tensor (…, n) to an array of the bytes that GGUF stores, a few rows at a time.

    Args:
        tensor: of any floating dtype.
        kind: as of :func:`stored_type`.
        name: of the tensor, for errors.

    Raises:
        CheckpointError: a weight is too large for float16.
    """
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, _AT_ONCE // rows.shape[1])
    parts = (_encode(part, kind, name) for part in torch.split(rows, step))
    first = next(parts)
    if len(first) == len(rows):
        return first
    encoded = np.empty((len(rows), first.shape[1]), first.dtype)
    encoded[:step] = first
    for i, part in enumerate(parts, start=1):
        encoded[i * step : (i + 1) * step] = part
    return encoded


def _encode(rows: Tensor, kind: Any, name: str) -> Any:
    if kind == _TYPES["f16"] and float(rows.abs().max()) > torch.finfo(torch.float16).max:
        raise CheckpointError(f"tensor {name!r} holds weights that float16 cannot: export with --type bf16, or f32")
    return gguf.quants.quantize(rows.float().numpy(), kind)
