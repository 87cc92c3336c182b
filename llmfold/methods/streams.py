"""Two kinds of hidden states to measure on: of token sequences, and of a population that the weights imply."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llmfold.methods.base import Weights
from llmfold.models import LayerShape
from llmfold.models.forward import ForwardContext, attention_heads, rms_norm
from llmfold.runtime.hidden_states import read


class Stream(Protocol):
    """How a layer's blocks of rows are read and how its attention sees them."""

    @property
    def context(self) -> ForwardContext:
        """What a forward pass needs."""

    def order(self, index: int, rows: int) -> np.ndarray | None:
        """Permutation of all rows before layer ``index``, or None."""


@dataclass(frozen=True)
class TokenStream:
    """Hidden states of token sequences, attended as the model attends."""

    context: ForwardContext

    def order(self, index: int, rows: int) -> None:
        """Sequences stay as they are."""
        return


@dataclass(frozen=True)
class PopulationStream:
    """A population of independent residual vectors (mean field): new random neighbours meet in every layer."""

    context: ForwardContext
    seed: int

    def order(self, index: int, rows: int) -> np.ndarray:
        """A fresh shuffle of the population for every layer."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        return torch.randperm(rows, generator=generator).numpy()


def gather(
    stream: np.ndarray,
    part: slice,
    order: np.ndarray | None,
    device: torch.device,
) -> Tensor:
    """Read sequences ``part`` of a stream (sequences, tokens, hidden) after permuting all its rows by ``order``."""
    if order is None:
        return read(stream, part, device)
    tokens, hidden = stream.shape[1:]
    rows = order[part.start * tokens : part.stop * tokens]
    return read(stream.reshape(-1, hidden), rows, device).view(-1, tokens, hidden)


def heads_of(x: Tensor, weights: Weights, layer: LayerShape, context: ForwardContext, index: int) -> Tensor:
    """Head outputs for raw hidden states, see :func:`llmfold.models.forward.attention_heads`."""
    return attention_heads(rms_norm(x, weights["input_norm"], context.eps), weights, layer, context, index)
