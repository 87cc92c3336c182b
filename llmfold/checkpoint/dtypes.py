"""The number formats llmfold folds, and that of counters beside them, by their safetensors names."""

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
STORED_DTYPES: dict[str, torch.dtype] = {**TORCH_DTYPES, "I64": torch.int64}
"""What a file may hold: weights, and the batches that a BatchNorm has counted."""
SAFETENSORS_DTYPES: dict[torch.dtype, str] = {dtype: name for name, dtype in STORED_DTYPES.items()}


def is_dtype(name: str) -> bool:
    """Whether torch has a dtype of this name that a model can be built in."""
    dtype = getattr(torch, name, None)
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
