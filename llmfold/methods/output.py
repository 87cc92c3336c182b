"""The end of the model: final norm, unembedding, and the next-token distributions that they give."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.architectures import EMBEDDING, FINAL_NORM, HEAD, ModelShape
from llmfold.checkpoint import Checkpoint
from llmfold.streaming.forward import rms_norm

_VOCABULARY_BLOCK = 16_384
ROWS = 512
"""Rows of logits that are held at once."""


@dataclass(frozen=True)
class Output:
    """Final gain (d,) float32 and unembedding (vocabulary, d) in its stored dtype, widened block by block."""

    gain: Tensor
    table: Tensor
    eps: float

    @staticmethod
    def of(checkpoint: Checkpoint, shape: ModelShape, eps: float, device: torch.device) -> "Output":
        """Read both from a checkpoint."""
        own = HEAD in checkpoint.tensors and not shape.tied
        name = HEAD if own or EMBEDDING not in checkpoint.tensors else EMBEDDING
        return Output(checkpoint.read(FINAL_NORM).to(device, torch.float32), checkpoint.read(name).to(device), eps)

    def normed(self, states: Tensor) -> Tensor:
        """(t, d) states after the last layer, normalised, without the gain."""
        return rms_norm(states, torch.ones_like(self.gain), self.eps)

    def logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) float32 of normalised rows (t, d) with their gain."""
        return torch.cat([F.linear(rows, block.float()) for block in torch.split(self.table, _VOCABULARY_BLOCK)], -1)

    def back(self, weights: Tensor) -> Tensor:
        """(t, d): rows of the unembedding summed with weights (t, vocabulary)."""
        parts = zip(
            torch.split(weights, _VOCABULARY_BLOCK, -1), torch.split(self.table, _VOCABULARY_BLOCK), strict=True
        )
        return torch.stack([w @ block.float() for w, block in parts]).sum(0)

    def second_moment(self, weights: Tensor) -> Tensor:
        """(d, d) float64 Σ w_v e_v e_vᵀ over unembedding rows e_v with weights (vocabulary,)."""
        parts = zip(torch.split(weights, _VOCABULARY_BLOCK), torch.split(self.table, _VOCABULARY_BLOCK), strict=True)
        return torch.stack([(block.double() * w.double()[:, None]).T @ block.double() for w, block in parts]).sum(0)
