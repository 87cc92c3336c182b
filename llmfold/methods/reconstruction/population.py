"""What the weights alone say of the residual stream: a population of residual vectors in mean field.

No text and no token sequence of the model is used. Tokens are drawn one by one, independently, from a prior that the
weights imply: the fixed point p of "the mean next-token distribution of a population drawn from p is p". Their residual
vectors pass through the blocks; since there is no sequence, attention reads from random other members, who are new in
every layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.config import FoldConfig
from llmfold.effort import EFFORTS
from llmfold.methods.base import read_layer
from llmfold.methods.dense import shuffled
from llmfold.models import ModelShape
from llmfold.repair.least_squares import cholesky
from llmfold.runtime.hidden_states import CHUNK, chunks

if TYPE_CHECKING:
    from llmfold.models.context import Context  # builds on transformers' models

_ROWS = 4096


@dataclass(frozen=True)
class PopulationOptions:
    """Settings of the mean field.

    Attributes:
        context: members that meet in one row of attention.
        prior_members: members the prior is estimated from.
        prior_rounds: rounds of the fixed point; the first two are plain, the others damped by one half.
    """

    context: int = 64
    prior_members: int = 4096
    prior_rounds: int = 6


def population_rows(config: FoldConfig, shape: ModelShape) -> int:
    """Rows of ``context`` members that layers are measured on, by the effort of a fold."""
    return -(-EFFORTS[config.effort].tokens_for(shape) // (PopulationOptions.context * CHUNK)) * CHUNK


@dataclass(frozen=True)
class Population:
    """Draws populations from the prior of a checkpoint, and knows the metric of its outputs.

    Attributes:
        checkpoint: the model's tensors.
        context: of its forward passes; attention reads from the members before one in its row.
        device: where to compute.
        seed: of everything random.
        options: settings.
    """

    checkpoint: Checkpoint
    context: "Context"
    device: torch.device
    seed: int
    options: PopulationOptions

    def prior(self) -> Tensor:
        """(vocabulary,) float64 token prior on the CPU: reads the checkpoint once per round, layer by layer."""
        options, vocabulary = self.options, self.context.shape.vocabulary
        p = torch.full((vocabulary,), 1 / vocabulary, dtype=torch.float64)
        for index in range(options.prior_rounds):
            rows = options.prior_members // options.context
            members = torch.cat(list(self.draw(p, rows, index)))
            q = self._next_tokens(self._through_layers(members, index))
            p = q if index < 2 else (p + q) / 2
        return p

    def draw(self, prior: Tensor, rows: int, salt: int) -> Iterator[Tensor]:
        """Residual vectors before the first layer in chunks of ``CHUNK`` rows of ``context`` members."""
        context = self.options.context
        generator = torch.Generator().manual_seed((self.seed * 7919 + salt) % 2**63)
        tokens = torch.multinomial(prior, rows * context, True, generator=generator).view(rows, context)
        return self.context.embed(self.checkpoint, tokens, self.device)

    def _through_layers(self, x: Tensor, salt: int) -> Tensor:
        """All members after the last layer, (rows, context, hidden)."""
        context, count = self.context, len(self.context.shape.layers)
        for index in range(count):
            stored = read_layer(self.checkpoint, context.shape, index, check_finite=False, device=self.device)
            weights = {role: tensor.to(self.device, torch.float32) for role, tensor in stored.items()}
            order = shuffled(self.seed, (salt + 1) * count + index, x.shape[0] * x.shape[1])
            x = x.flatten(0, 1)[order.to(x.device)].view(x.shape)
            x = torch.cat([context.layer(x[part], weights, index) for part in chunks(len(x))])
        return x

    def _next_tokens(self, x: Tensor) -> Tensor:
        """(vocabulary,) float64 mean distribution of the tokens after some states, on the CPU."""
        ends = self.context.ends(self.checkpoint, self.device)
        total = torch.zeros(self.context.shape.vocabulary, dtype=torch.float64)
        for rows in torch.split(x.flatten(0, 1), 512):
            total += ends.logits(rows).softmax(-1).double().sum(0).cpu()
        return total.div(float(total.sum()))

    def output_metric(self, prior: Tensor) -> Tensor:
        """(hidden, hidden) float64 map R with R Rᵀ = (C / mean diag C + I) / 2, whose mean diagonal is 1.

        C is the covariance under the prior of the unembedding rows times the last gain, an average Fisher matrix of the
        logits; the identity stands for the layers in between.
        """
        gain, head = (each.cpu() for each in self.context.ends(self.checkpoint, torch.device("cpu")).readout)
        gain = gain.double()
        second, mean = torch.zeros(len(gain), len(gain), dtype=torch.float64), torch.zeros_like(gain)
        for some, p in zip(torch.split(head, _ROWS), torch.split(prior, _ROWS), strict=True):
            rows = some.double() * gain
            second += (rows * p[:, None]).T @ rows
            mean += p @ rows
        covariance = second - torch.outer(mean, mean)
        covariance /= 2 * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        return cholesky(covariance, 0.5)
