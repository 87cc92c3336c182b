"""Multiplications of a forward pass, counted the same way for every module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiplications(module: Callable[..., Any], *inputs: Tensor) -> int:
    """Multiplications in matrix products, convolutions and attention: half of what torch's FlopCounterMode counts.

    Args:
        module: in evaluation, a program of ``torch.export`` as well.
        inputs: of one forward pass; a batch of one for the count of an image.
    """
    # Fused attention is not counted on every device; as matrix products it is the same number.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2
