"""Whether the Triton kernels take a step of the clustering over."""

import os
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] | None = None) -> ModuleType | None:
    """Return :mod:`llmfold_kernels` if its kernels can work on all these tensors, else None.

    They can on CUDA with triton installed, for float32 and 16-bit tensors (or for ``dtypes``), and on the CPU in
    Triton's interpreter.
    """
    if not all(tensor.is_cuda for tensor in tensors) and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    import llmfold_kernels

    known = (
        llmfold_kernels.on_triton(*tensors) if dtypes is None else llmfold_kernels.on_triton(*tensors, dtypes=dtypes)
    )
    return llmfold_kernels if known else None
