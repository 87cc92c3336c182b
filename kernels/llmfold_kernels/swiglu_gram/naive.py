"""What the fused SwiGLU Gram computes, in torch."""

import torch.nn.functional as F
from torch import Tensor


def activations(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, computed in float32 and rounded to the dtype of the inputs."""
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def swiglu_gram(gate: Tensor, up: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return AᵀWA (n x n) and AᵀWY (n x m), float32."""
    a = activations(gate, up)
    weighted = a if weights is None else (a.float() * weights[:, None]).to(gate.dtype)
    square = weighted.float().T @ a.float()
    return square.tril() + square.tril(-1).T, weighted.float().T @ targets.float()
