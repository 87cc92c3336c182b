"""Forward passes of a model, a layer at a time, by the stock model's own layers."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.models.base import FINAL_NORM, LayerShape, Role
from llmfold.models.coupling import LayerCouplings, NeuronCoupling
from llmfold.models.stock import Seen, StockModel
from llmfold.models.stock_shape import StockShape
from llmfold.runtime.hidden_states import chunks

Weights = Mapping[Role, Tensor]
_ROWS = 512
"""Rows of logits that are held at once."""


@dataclass(frozen=True)
class Context:
    """Forward passes of a model; weights of a layer come by role, in the dtype and on the device of the states.

    What is kept of a layer's inside are the inputs of its MLPs, side by side where they are given different ones, and
    the outputs of those that every token passes.
    """

    shape: StockShape

    @property
    def stock(self) -> StockModel:
        """The stock model."""
        return self.shape.stock

    def readers(self, index: int) -> tuple[str, ...]:
        """Paths of modules whose inputs are all that the layer's MLPs read; experts and what stands beside them one."""
        found: dict[str, str] = {}
        for coupling in self._couplings(index).neurons:
            found.setdefault(_block(coupling), coupling.router or coupling.reads)
        return tuple(found.values())

    def givers(self, index: int) -> tuple[str, ...]:
        """Paths of modules whose outputs are those of the layer's MLPs; an expert has none to itself."""
        return tuple(each.gives for each in self._couplings(index).neurons if each.expert is None)

    def _couplings(self, index: int) -> LayerCouplings:
        return self.shape.couplings(self.shape.layers[index])

    @cached_property
    def inner_width(self) -> int:
        """Features that are kept of a layer's inside, a row."""
        kept = (len(self.readers(index)) + len(self.givers(index)) for index in range(len(self.shape.layers)))
        return self.shape.hidden * max(1, *kept)

    def through(
        self, x: Tensor, weights: Weights, index: int, widths: LayerShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is kept of a layer's inside (…, inner_width), and the hidden states after it (…, hidden).

        Arguments are those of :meth:`layer`.
        """
        readers, givers = self.readers(index), self.givers(index)
        seen = self._watched(index, weights, x, widths, inputs=readers, outputs=givers)
        assert seen.after is not None
        inside = x.new_zeros(*x.shape[:-1], self.inner_width)
        kept = [*(seen.inputs[path][0] for path in readers), *(seen.outputs[path] for path in givers)]
        for number, states in enumerate(kept):
            self._part(inside, number).copy_(states.view_as(x))
        return inside, seen.after

    def _part(self, inside: Tensor, number: int) -> Tensor:
        return inside[..., number * self.shape.hidden : (number + 1) * self.shape.hidden]

    def layer(self, x: Tensor, weights: Weights, index: int, widths: LayerShape | None = None) -> Tensor:
        """Hidden states after a layer; (sequences, tokens, hidden) in and out.

        Args:
            x: states before it.
            weights: of the layer.
            index: of the layer.
            widths: those of the weights where they are not the model's.
        """
        with self._at_widths(index, widths):
            return self.stock.layer(index, weights, x)

    def _at_widths(self, index: int, widths: LayerShape | None = None) -> AbstractContextManager[None]:
        """Where a layer runs that may be narrower than the stock model's."""
        before, now = self.shape.kinds[self.shape.layers[index].kind].full, widths or self.shape.layers[index]
        return nullcontext() if now.group_size == before.group_size else self.stock.sharing(index, now.group_size)

    def _watched(
        self, index: int, weights: Weights, x: Tensor, widths: LayerShape | None = None, **places: Any
    ) -> Seen:
        with self._at_widths(index, widths):
            return self.stock.watched(index, weights, x, **places)

    def heads(self, x: Tensor, weights: Weights, index: int) -> Tensor:
        """What the heads' consumer reads, (sequences, tokens, heads * head_dim), from the states before a layer."""
        heads = self._couplings(index).heads
        assert heads is not None
        seen = self._watched(index, weights, x, inputs=(heads.consumer,), stop=True)
        outputs: Tensor = seen.inputs[heads.consumer][0]
        return outputs.view(*x.shape[:2], -1)

    def consumed(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the consumers of a plain layer read, (…, heads * head_dim) and (…, n), and the states after it."""
        couplings = self._couplings(index)
        assert couplings.heads is not None
        places = (couplings.heads.consumer, couplings.neurons[0].gives)
        seen = self._watched(index, weights, x, inputs=places)
        assert seen.after is not None
        heads, neurons = (seen.inputs[path][0].view(*x.shape[:2], -1) for path in places)
        return heads, neurons, seen.after

    def mlp_inputs(self, inside: Tensor, coupling: NeuronCoupling, index: int) -> Tensor:
        """What a coupling's producers read (…, hidden), from what is kept of a layer's inside (…, inner_width)."""
        blocks = dict.fromkeys(map(_block, self._couplings(index).neurons))
        return self._part(inside, list(blocks).index(_block(coupling)))

    def mlp_outputs(self, inside: Tensor, coupling: NeuronCoupling, index: int) -> Tensor:
        """What the consumer of an MLP gives (…, hidden) that every token passes."""
        return self._part(inside, len(self.readers(index)) + self.givers(index).index(coupling.gives))

    def disturbed(self, inside: Tensor, after: Tensor, index: int) -> Tensor:
        """The states that an error of the attention disturbs first, of those that are known: (…, hidden)."""
        if not self.shape.architecture.registered:  # there may be norms behind the MLP
            return after
        (coupling,) = self._couplings(index).neurons
        return after - self.mlp_outputs(inside, coupling, index)

    def routing(self, x: Tensor, weights: Weights, index: int, coupling: NeuronCoupling) -> tuple[Tensor, Tensor]:
        """Experts (t, k) of each row and their weights (t, k), from the states (sequences, tokens, hidden) before."""
        if coupling.router is not None:
            seen = self._watched(index, weights, x, outputs=(coupling.router,), stop=True)
            given = seen.outputs[coupling.router]
            shares, experts = given.topk(int(given.gt(0).sum(1).max()))
            return experts, shares
        seen = self._watched(index, weights, x, inputs=(coupling.reads,), stop=True)
        _, experts, shares = seen.inputs[coupling.reads][:3]
        return experts, shares

    def differentiable(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """What a layer's attention and its MLP add (None where it has no such coupling), and the states after it."""
        couplings = self._couplings(index)
        heads = couplings.heads.consumer if couplings.heads else None
        gives = max(couplings.neurons, key=lambda each: each.expert is not None).gives if couplings.neurons else None
        seen = self._watched(index, weights, x, outputs=[path for path in (heads, gives) if path])
        assert seen.after is not None
        return (seen.outputs[heads] if heads else None, seen.outputs[gives] if gives else None, seen.after)

    def embed(self, checkpoint: Checkpoint, tokens: Tensor, device: torch.device) -> Iterator[Tensor]:
        """Hidden states before the first layer, in chunks of ``CHUNK`` sequences."""
        outside = self._outside(checkpoint)
        for part in chunks(len(tokens)):
            yield self.stock.embed(outside, tokens[part]).to(device)

    def _outside(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        return self.stock.widened(self.shape.outside(partial(checkpoint.read, check_finite=False)))

    def ends(self, checkpoint: Checkpoint, device: torch.device) -> "Ends":
        """What the model makes of the states after the last layer."""
        outside = {name: tensor.to(device) for name, tensor in self._outside(checkpoint).items()}
        gain = outside[FINAL_NORM] if self.shape.architecture.registered else None
        return Ends(self.stock, outside, gain)


def _block(coupling: NeuronCoupling) -> str:
    """Path of what holds all MLPs that are given the same input: an MLP, or a mixture of experts."""
    if coupling.expert is not None:
        return coupling.reads.rpartition(".")[0]
    path = coupling.reads.rpartition(".")[0]
    return path.rpartition(".")[0] if "shared" in path.rpartition(".")[2] and "." in path else path


@dataclass(frozen=True)
class Ends:
    """What a model makes of the hidden states after its last layer.

    Attributes:
        stock: the model.
        outside: its parameters outside the layers, see :meth:`StockModel.widened`.
        gain: of the last norm, (hidden,); None where it is not known.
    """

    stock: StockModel
    outside: Mapping[str, Tensor]
    gain: Tensor | None = None

    @property
    def readout(self) -> tuple[Tensor, Tensor]:
        """Gain of the last norm (hidden,), ones where that is not known, and unembedding (vocabulary, hidden)."""
        table = self.outside[f"{self.stock.head_path}.weight"]
        return torch.ones(table.shape[1], device=table.device) if self.gain is None else self.gain, table

    def logits(self, rows: Tensor) -> Tensor:
        """(t, vocabulary) float32 of states (t, hidden) after the last layer, differentiable in them."""
        return self.stock.logits(self.outside, rows[:, None])[:, 0]  # each at the first position

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
