"""The end of the model: final norm and unembedding, and how its own next-token distributions pull at hidden states."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.models.norm import rms_norm

_BLOCK = 16_384
_ROWS = 512
"""Rows of logits that are held at once."""


class Ends(ABC):
    """What a model makes of the hidden states after its last layer."""

    @abstractmethod
    def logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) float32 of states (t, hidden), differentiable in them."""

    @property
    @abstractmethod
    def readout(self) -> tuple[Tensor, Tensor]:
        """Gain of the last norm (hidden,), ones where that is not known, and unembedding (vocabulary, hidden)."""

    def gradients(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Gradients of −log p(y) in states, y drawn from the model's own p.

        Args:
            states: (t, d) after the last layer, float32.
            generator: of the labels y, on the CPU.

        Returns:
            (t, d) float32.
        """
        return torch.cat([self._gradients(rows, generator) for rows in torch.split(states, _ROWS)])

    def _gradients(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        with torch.enable_grad():
            x = rows.detach().requires_grad_()
            logits = self.logits(x)
            p = logits.detach().softmax(-1)
            labels = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
            p.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=p.dtype))
            (gradient,) = torch.autograd.grad(logits, x, p)
        return gradient


@dataclass(frozen=True)
class LMHead(Ends):
    """Final gain (d,) float32 and unembedding (vocabulary, d) in its stored dtype, widened block by block."""

    gain: Tensor
    table: Tensor
    eps: float

    @property
    def readout(self) -> tuple[Tensor, Tensor]:
        """Gain of the last norm (hidden,), and unembedding (vocabulary, hidden)."""
        return self.gain, self.table

    def logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) float32 of states (t, hidden), differentiable in them."""
        return self._logits(rms_norm(rows, self.gain, self.eps))

    def _gradients(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        with torch.enable_grad():
            x = rows.detach().requires_grad_()
            normed = rms_norm(x, self.gain, self.eps)
            p = self._logits(normed.detach()).softmax(-1)
            labels = torch.multinomial(p.cpu(), 1, generator=generator).flatten().to(p.device)
            (gradient,) = torch.autograd.grad(normed, x, self._back(p) - self.table[labels].float())
        return gradient

    def _logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) float32 of normalised rows (t, d)."""
        return torch.cat([F.linear(rows, block.float()) for block in torch.split(self.table, _BLOCK)], -1)

    def _back(self, weights: Tensor) -> Tensor:
        """(t, d): rows of the unembedding summed with weights (t, vocabulary)."""
        sums = torch.zeros(len(weights), self.table.shape[1], device=weights.device)
        for part, block in zip(torch.split(weights, _BLOCK, -1), torch.split(self.table, _BLOCK), strict=True):
            sums += part @ block.float()
        return sums
