"""Moments of what enters the consumers of a layer: the outputs of its heads, and its neurons."""

import numpy as np
import torch
from torch import Tensor

from llmfold.methods.base import Weights
from llmfold.methods.dense import Measurement
from llmfold.runtime.hidden_states import chunks, read, write


class Moments:
    """Sums over tokens of m features and of their squares, (m,) float64; over fixed blocks in a fixed order."""

    def __init__(self, width: int, device: torch.device) -> None:
        """Begin with sums of zero over no tokens."""
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.squares = self.total.clone()
        self.count = 0

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
    measurement: Measurement, index: int, weights: Weights, before: np.ndarray, after: np.ndarray | None
) -> tuple[Moments, Moments]:
    """Moments of the inputs of both consumers in one pass of a dense layer.

    Args:
        measurement: how rows are attended, and where.
        index: of the layer.
        weights: the layer's tensors in float32 on the device.
        before: hidden states before the layer, (sequences, tokens, hidden).
        after: where to store those after the layer, may be ``before`` itself; None leaves them out.

    Returns:
        Moments of (heads * head_dim) and of (intermediate) features.
    """
    context, device = measurement.context, measurement.device
    layer = context.shape.layers[index]
    heads = Moments(layer.heads * context.shape.head_dim, device)
    neurons = Moments(layer.intermediate, device)
    for part in chunks(measurement.size[0]):
        given, made, states = context.consumed(read(before, part, device), weights, index)
        heads.add(given)
        neurons.add(made)
        if after is not None:
            write(after, part, states)
    return heads, neurons
