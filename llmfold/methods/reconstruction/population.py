"""What the weights alone say of the residual stream: a population of residual vectors in mean field.

No text and no token sequence of the model is used. Tokens are drawn one by one, independently, from a prior that the
weights imply: the fixed point p of "the mean next-token distribution of a population drawn from p is p". Their residual
vectors pass through the blocks; since there is no sequence, attention reads from random other members, who are new in
every layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.config import FoldConfig
from llmfold.effort import EFFORTS
from llmfold.methods.streams import PopulationStream
from llmfold.models import EMBEDDING, FINAL_NORM, HEAD, ModelShape
from llmfold.models.forward import decoder_layer, rms_norm
from llmfold.runtime.hidden_states import CHUNK, chunks

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


class Population:
    """Draws populations from the prior of a checkpoint, and knows the metric of its outputs."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        shape: ModelShape,
        stream: PopulationStream,
        device: torch.device,
        options: PopulationOptions,
    ) -> None:
        self._checkpoint, self._shape, self._stream = checkpoint, shape, stream
        self._device, self._options = device, options

    def prior(self) -> Tensor:
        """(vocabulary,) float64 token prior on the CPU: reads the checkpoint once per round, layer by layer."""
        options, vocabulary = self._options, self._shape.vocabulary
        p = torch.full((vocabulary,), 1 / vocabulary, dtype=torch.float64)
        for index in range(options.prior_rounds):
            rows = options.prior_members // options.context
            members = torch.cat(list(self.draw(p, rows, index)))
            q = self._next_tokens(self._through_layers(members, index))
            p = q if index < 2 else (p + q) / 2
        return p

    def draw(self, prior: Tensor, rows: int, salt: int) -> Iterator[Tensor]:
        """Residual vectors before the first layer in chunks of ``CHUNK`` rows of ``context`` members."""
        context = self._options.context
        generator = torch.Generator().manual_seed((self._stream.seed * 7919 + salt) % 2**63)
        tokens = torch.multinomial(prior, rows * context, True, generator=generator).view(rows, context)
        table = self._checkpoint.read(self._name(EMBEDDING, HEAD), check_finite=False)
        for part in chunks(rows, CHUNK):
            yield F.embedding(tokens[part], table).float().to(self._device)

    def _name(self, first: str, second: str) -> str:
        return first if first in self._checkpoint.tensors else second

    def _through_layers(self, x: Tensor, salt: int) -> Tensor:
        """All members after the last layer, (rows, context, hidden)."""
        shape, count = self._shape, len(self._shape.layers)
        for index, layer in enumerate(shape.layers):
            weights = {
                role: self._checkpoint.read(name, check_finite=False).to(self._device, torch.float32)
                for role, name in shape.layer_tensors(index).items()
            }
            order = torch.from_numpy(self._stream.order((salt + 1) * count + index, x.shape[0] * x.shape[1]))
            x = x.flatten(0, 1)[order.to(x.device)].view(x.shape)
            x = torch.cat(
                [decoder_layer(x[part], weights, layer, self._stream.context, index) for part in chunks(len(x))]
            )
        return x

    def _next_tokens(self, x: Tensor) -> Tensor:
        gain = self._checkpoint.read(FINAL_NORM, check_finite=False).to(self._device, torch.float32)
        head = self._checkpoint.read(self._name(HEAD, EMBEDDING), check_finite=False).to(self._device, torch.float32)
        total = torch.zeros(self._shape.vocabulary, dtype=torch.float64)
        for rows in torch.split(x.flatten(0, 1), 512):
            logits = rms_norm(rows, gain, self._stream.context.eps) @ head.T
            total += logits.softmax(-1).double().sum(0).cpu()
        return total.div(float(total.sum()))

    def output_metric(self, prior: Tensor) -> Tensor:
        """(hidden, hidden) float64 map R with R Rᵀ = C / mean diag C + I.

        C is the covariance under the prior of the unembedding rows times the last gain, an average Fisher matrix of the
        logits; the identity stands for the layers in between.
        """
        gain = self._checkpoint.read(FINAL_NORM, check_finite=False).double()
        head = self._checkpoint.read(self._name(HEAD, EMBEDDING), check_finite=False)
        second = torch.zeros(len(gain), len(gain), dtype=torch.float64)
        mean = torch.zeros(len(gain), dtype=torch.float64)
        for start in range(0, len(head), _ROWS):
            rows = head[start : start + _ROWS].double() * gain
            p = prior[start : start + _ROWS]
            second += (rows * p[:, None]).T @ rows
            mean += p @ rows
        covariance = second - torch.outer(mean, mean)
        covariance /= covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        metric: Tensor = torch.linalg.cholesky(covariance + torch.eye(len(gain), dtype=torch.float64))
        return metric
