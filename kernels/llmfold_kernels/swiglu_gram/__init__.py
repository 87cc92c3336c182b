"""Normal equations of a down projection from gate and up alone: A = silu(G) ∘ U is never stored."""

from torch import Tensor

from llmfold_kernels.dispatch import launching_on, on_triton
from llmfold_kernels.swiglu_gram import naive


def swiglu_gram(gate: Tensor, up: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return AᵀWA and AᵀWY for A = silu(gate) * up, rounded to the inputs' dtype as a model would, sums in float32.

    Args:
        gate: t x n before the activation; bf16, fp16 or fp32.
        up: t x n of the same dtype.
        targets: t x m of the same dtype.
        weights: t row weights W, float32; all 1 when left out. They are rounded into the left factor.

    Returns:
        n x n symmetric and n x m, float32.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if gate.shape != up.shape or len(targets) != len(gate) or not gate.dtype == up.dtype == targets.dtype:
        raise ValueError(
            f"gate {gate.dtype} {tuple(gate.shape)}, up {up.dtype} {tuple(up.shape)} and targets {targets.dtype} "
            f"{tuple(targets.shape)} do not fit"
        )
    if on_triton(gate, up, targets):
        from llmfold_kernels.swiglu_gram import kernel

        with launching_on(gate):
            return kernel.swiglu_gram(gate.contiguous(), up.contiguous(), targets.contiguous(), weights)
    return naive.swiglu_gram(gate, up, targets, weights)
