"""RMSNorm, as Llama has it."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to unit root mean square in float32 and apply the gain."""
    wide = x.float() if x.dtype != torch.float64 else x
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
