"""Forward passes of any family, a layer at a time, by the stock model's own layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.models.base import LayerShape, Role
from llmfold.models.coupling import NeuronCoupling
from llmfold.models.stock import StockModel
from llmfold.models.stock_shape import StockShape
from llmfold.models.unembedding import Ends
from llmfold.runtime.hidden_states import chunks

Weights = Mapping[Role, Tensor]


@dataclass(frozen=True)
class StockContext:
    """What :class:`llmfold.models.forward.ForwardContext` is for the families that are described in llmfold.

    What is kept of a layer's inside are the inputs of its MLPs, side by side where they are given different ones.
    """

    shape: StockShape

    @property
    def stock(self) -> StockModel:
        """The stock model."""
        return self.shape.stock

    def readers(self, index: int) -> tuple[str, ...]:
        """Paths of modules whose inputs are all that the layer's MLPs read; experts and what stands beside them one."""
        found: dict[str, str] = {}
        for coupling in self.shape.couplings(self.shape.layers[index]).neurons:
            found.setdefault(_block(coupling), coupling.reads)
        return tuple(found.values())

    @cached_property
    def inner_width(self) -> int:
        """Features that are kept of a layer's inside, a row."""
        return self.shape.hidden * max(len(self.readers(index)) or 1 for index in range(len(self.shape.layers)))

    def through(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor, Tensor]:
        """The inputs of a layer's MLPs (…, inner_width), and the hidden states after it (…, hidden)."""
        readers = self.readers(index)
        seen = self.stock.watched(index, weights, x, inputs=readers)
        assert seen.after is not None
        inner = x.new_zeros(*x.shape[:-1], self.inner_width)
        for number, path in enumerate(readers):
            start = number * self.shape.hidden
            inner[..., start : start + self.shape.hidden] = seen.inputs[path][0].view_as(x)
        return inner, seen.after

    def layer(self, x: Tensor, weights: Weights, index: int, widths: LayerShape | None = None) -> Tensor:
        """Hidden states after a layer; (sequences, tokens, hidden) in and out."""
        return self.stock.layer(index, weights, x)

    def heads(self, x: Tensor, weights: Weights, index: int) -> Tensor:
        """What the heads' consumer reads, (sequences, tokens, heads * head_dim), from the states before a layer."""
        heads = self.shape.couplings(self.shape.layers[index]).heads
        assert heads is not None
        seen = self.stock.watched(index, weights, x, inputs=(heads.consumer,), stop=True)
        outputs: Tensor = seen.inputs[heads.consumer][0]
        return outputs.view(*x.shape[:2], -1)

    def disturbed(self, inside: Tensor, after: Tensor) -> Tensor:
        """The states that an error of the attention disturbs first, of those that are kept."""
        return after

    def mlp_inputs(self, inside: Tensor, weights: Weights, coupling: NeuronCoupling, index: int) -> Tensor:
        """What a coupling's producers read (…, hidden), from what is kept of a layer's inside (…, inner_width)."""
        blocks = dict.fromkeys(map(_block, self.shape.couplings(self.shape.layers[index]).neurons))
        start = list(blocks).index(_block(coupling)) * self.shape.hidden
        return inside[..., start : start + self.shape.hidden]

    def mlp_outputs(self, inside: Tensor, after: Tensor, x: Tensor, mlp: Weights, coupling: NeuronCoupling) -> Tensor:
        """What a dense coupling's consumer gives (…, hidden) for inputs ``x``."""
        return F.linear(self.neurons(x, mlp, coupling), mlp["down"], mlp.get("down_bias"))

    def routing(self, x: Tensor, weights: Weights, index: int, coupling: NeuronCoupling) -> tuple[Tensor, Tensor]:
        """Experts (t, k) of each row and their weights (t, k), from the states (sequences, tokens, hidden) before."""
        seen = self.stock.watched(index, weights, x, inputs=(coupling.reads,), stop=True)
        _, experts, shares = seen.inputs[coupling.reads][:3]
        return experts, shares

    def neurons(self, x: Tensor, mlp: Weights, coupling: NeuronCoupling) -> Tensor:
        """Activations (…, n) of a coupling's neurons for inputs (…, hidden)."""
        if coupling.own is not None:
            return coupling.own.neurons(x, mlp)
        gate = F.linear(x, mlp["gate"], mlp.get("gate_bias")) if "gate" in mlp else None
        return coupling.activation(gate, F.linear(x, mlp["up"], mlp.get("up_bias")))

    def differentiable(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """What a layer's attention and its MLP add (None where it has no such coupling), and the states after it."""
        couplings = self.shape.couplings(self.shape.layers[index])
        heads = couplings.heads.consumer if couplings.heads else None
        gives = max(couplings.neurons, key=lambda each: each.expert is not None).gives if couplings.neurons else None
        seen = self.stock.watched(index, weights, x, outputs=[path for path in (heads, gives) if path])
        assert seen.after is not None
        return (seen.outputs[heads] if heads else None, seen.outputs[gives] if gives else None, seen.after)

    def embed(self, checkpoint: Checkpoint, tokens: Tensor, device: torch.device) -> Iterator[Tensor]:
        """Hidden states before the first layer, in chunks of ``CHUNK`` sequences."""
        outside = self._outside(checkpoint)
        for part in chunks(len(tokens)):
            yield self.stock.embed(outside, tokens[part]).to(device)

    def _outside(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        return self.shape.outside(partial(checkpoint.read, check_finite=False))

    def ends(self, checkpoint: Checkpoint, device: torch.device) -> Ends:
        """What the model makes of the states after the last layer."""
        outside = {name: tensor.to(device) for name, tensor in self._outside(checkpoint).items()}
        return StockEnds(self.stock, outside)


def _block(coupling: NeuronCoupling) -> str:
    """Path of what holds all MLPs that are given the same input: an MLP, or a mixture of experts."""
    if coupling.expert is not None:
        return coupling.reads.rpartition(".")[0]
    path = coupling.reads.rpartition(".")[0]
    return path.rpartition(".")[0] if "shared" in path.rpartition(".")[2] and "." in path else path


@dataclass(frozen=True)
class StockEnds(Ends):
    """The end of a stock model."""

    stock: StockModel
    outside: Mapping[str, Tensor]

    @property
    def readout(self) -> tuple[Tensor, Tensor]:
        """Ones, and the unembedding (vocabulary, hidden)."""
        table = self.outside[f"{self.stock.head_path}.weight"]
        return torch.ones(table.shape[1], device=table.device), table

    def logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) float32 of states (t, hidden) after the last layer, differentiable in them."""
        return self.stock.logits(self.outside, rows[:, None])[:, 0]  # each at the first position
