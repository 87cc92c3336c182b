"""Moments of what enters the output projections of a layer: head outputs before o_proj, neurons before down_proj."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.methods.baselines.structures import Weights
from llmfold.methods.dense import Measurement
from llmfold.methods.streams import heads_of
from llmfold.models import LayerShape
from llmfold.models.forward import mlp_neurons, rms_norm
from llmfold.runtime.hidden_states import chunks, read, write


@dataclass
class Moments:
    """Sums over tokens of m features and of their squares, in float64; they run over fixed blocks in a fixed order.

    Attributes:
        total, squares: (m,) sums.
        count: tokens.
    """

    total: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def of_width(cls, width: int, device: torch.device) -> "Moments":
        """No tokens yet."""
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(zeros, zeros.clone())

    def add(self, features: Tensor) -> None:
        """Add (…, m) features."""
        rows = features.reshape(-1, features.shape[-1]).double()
        self.total += rows.sum(0)
        self.squares += rows.square().sum(0)
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """(m,) mean over tokens."""
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """(m,) sample variance over tokens."""
        return (self.squares - self.total * self.mean).clamp_min(0) / max(self.count - 1, 1)


def consumer_moments(
    on: Measurement, index: int, weights: Weights, layer: LayerShape, before: np.ndarray, after: np.ndarray | None
) -> tuple[Moments, Moments]:
    """Moments of the inputs of o_proj and of down_proj in one pass of a layer.

    Args:
        on: how rows are attended, and where.
        index: of the layer.
        weights: the layer's tensors in float32 on the device.
        layer: its widths.
        before: hidden states before the layer, (sequences, tokens, hidden).
        after: where to store those after the layer, may be ``before`` itself; None leaves them out.

    Returns:
        Moments of (heads * head_dim) and of (intermediate) features.
    """
    context = on.stream.context
    heads = Moments.of_width(layer.heads * on.shape.head_dim, on.device)
    neurons = Moments.of_width(layer.intermediate, on.device)
    for part in chunks(on.size[0]):
        x = read(before, part, on.device)
        z = heads_of(x, weights, layer, context, index)
        heads.add(z)
        x = x + F.linear(z, weights["o"], weights.get("o_bias"))
        a = mlp_neurons(rms_norm(x, weights["post_norm"], context.eps), weights, context)
        neurons.add(a)
        if after is not None:
            write(after, part, x + F.linear(a, weights["down"], weights.get("down_bias")))
    return heads, neurons
