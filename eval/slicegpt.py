r"""Slice a model as SliceGPT does, in memory, and score it beside the folds of ``eval/real_model.py``.

    python eval/slicegpt.py run MODEL --name smollm2 --fraction 0.187 \
        --data wikipedia-train.txt.xz --num-samples 256 --sequence-length 256 \
        --text wikitext-2-raw-v1-test.txt:31-130 --text tinystories-validation-head.txt:1-100
    python eval/slicegpt.py page

SliceGPT (Ashkboos et al., ICLR 2024, arXiv 2401.15024) narrows the residual stream. An RMSNorm whose gains are moved
into the matrices that read it commutes with rotations, so before every block the stream can stand in a basis of its
own: the principal directions of the signals that calibration text sends there, of which only the first ``width`` are
kept. Readers take the basis Q on their input side, writers P on their output side, and the residual connection between
two blocks is multiplied by the shortcut matrix Q^T P. Signals are taken from the model as sliced so far, before the
norm, as in the published code; ``--normalised`` takes them behind it, so that every token weighs the same. The norm
still divides by the dense width, and what the last block writes is neither rotated nor cut, so the head stays whole.

Parameters of the decoder layers are counted with the shortcut matrices and without; gains that moved into matrices
are no parameters any more. Outside the layers the embedding shrinks to ``width`` columns. The head then differs from
it in basis, width and gains, so tied embeddings are untied, and the share of all parameters that goes can be negative.

Any model of transformers whose modules are named and called as Llama's will do. It must fit in memory together with
its signals, and the sequences of calibration in its sliding window if it has one.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import rivals
import torch
from keeping import command_line
from real_model import SLICING, page
from torch import Tensor, nn

from llmfold.models import ModelShape
from llmfold.runtime.hidden_states import CHUNK


@dataclass(frozen=True)
class Sizes:
    """Parameters of the decoder layers: dense, and sliced to a width without and with the shortcut matrices."""

    dense: int
    matrices: int
    shortcuts: int

    @property
    def removed(self) -> float:
        """Share of the dense decoder that goes, shortcut matrices counted."""
        return 1 - (self.matrices + self.shortcuts) / self.dense

    @property
    def removed_without_shortcuts(self) -> float:
        """The same with shortcut matrices taken for nothing."""
        return 1 - self.matrices / self.dense


def sizes(shape: ModelShape, width: int) -> Sizes:
    """Count the decoder of ``shape`` sliced to ``width``; the last layer still writes the dense width."""
    narrow = dataclasses.replace(shape, hidden=width)
    gains = 2 * width * len(shape.layers)
    last = (shape.hidden - width) * (shape.layers[-1].intermediate + shape.mlp_bias)
    shortcuts = (2 * len(shape.layers) - 1) * width * width + width * shape.hidden
    return Sizes(shape.decoder_parameters, narrow.decoder_parameters - gains + last, shortcuts)


def width_for(shape: ModelShape, fraction: float) -> int:
    """The width that comes closest to removing ``fraction`` of the decoder's parameters, shortcut matrices counted."""
    return min(range(1, shape.hidden + 1), key=lambda width: abs(sizes(shape, width).removed - fraction))


class Norm(nn.Module):
    """RMSNorm without gains, whose mean square is over the dense width: directions that are gone count as zeros."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.hidden, self.eps = hidden, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (…, width)."""
        square = x.float().pow(2).sum(-1, keepdim=True) / self.hidden
        return (x.float() * torch.rsqrt(square + self.eps)).to(x.dtype)


class Block(nn.Module):
    """An attention or MLP block together with its residual connection: x S + f(norm(x)), S the shortcut matrix.

    Args:
        inner: the stock module f.
        readers: projections of ``inner`` that read the residual stream; they take over the gains of the norm.
        writer: its projection that writes the stream.
        gains: (dense,) of the stock norm before it.
        norm: without gains.
    """

    def __init__(
        self, inner: nn.Module, readers: Sequence[nn.Linear], writer: nn.Linear, gains: Tensor, norm: Norm
    ) -> None:
        super().__init__()
        self.inner, self.norm = inner, norm
        self.shortcut = nn.Linear(len(gains), len(gains), bias=False)
        set_weight(self.shortcut, torch.eye(len(gains)), like=writer.weight)
        self._projections = tuple(readers), writer  # a tuple, so that they are not registered a second time
        for reader in readers:
            set_weight(reader, reader.weight.double() * gains.double())

    def read(self, basis: Tensor) -> None:
        """Take signals that stand in ``basis``, (dense, width)."""
        readers, _ = self._projections
        for module in (*readers, self.shortcut):
            set_weight(module, module.weight.double() @ basis)

    def write(self, basis: Tensor) -> None:
        """Give signals that stand in ``basis``, (dense, width)."""
        _, writer = self._projections
        for module in (writer, self.shortcut):
            set_weight(module, basis.T @ module.weight.double())
        if writer.bias is not None:
            writer.bias = parameter(basis.T @ writer.bias.double(), like=writer.bias)

    def forward(self, x: Tensor, **context: Any) -> Tensor:
        """Signals behind the block; ``context`` is what stock attention is told."""
        update = self.inner(self.norm(x), **context)
        return self.shortcut(x) + (update[0] if isinstance(update, tuple) else update)


class SlicedLayer(nn.Module):
    """A decoder layer as two blocks with shortcut matrices, called as the stock layer is; not yet narrowed."""

    def __init__(self, layer: Any, norm: Norm) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        queries = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention = Block(attention, queries, attention.o_proj, layer.input_layernorm.weight, norm)
        gated = (mlp.gate_proj, mlp.up_proj)
        self.mlp = Block(mlp, gated, mlp.down_proj, layer.post_attention_layernorm.weight, norm)

    def forward(self, hidden_states: Tensor, **context: Any) -> Tensor:
        """Hidden states behind the layer."""
        return self.mlp(self.attention(hidden_states, **context))


def parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """``value`` in the dtype and on the device of ``like``."""
    return nn.Parameter(value.to(like.device, like.dtype).contiguous(), requires_grad=False)


def set_weight(module: nn.Linear | nn.Embedding, weight: Tensor, like: Tensor | None = None) -> None:
    """Give a module another weight, in the dtype and on the device of ``like`` or of the one it has, and its sizes."""
    module.weight = parameter(weight, like=module.weight if like is None else like)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    else:
        module.num_embeddings, module.embedding_dim = weight.shape


def principal(signals: Iterable[Tensor], width: int) -> Tensor:
    """The ``width`` directions with the largest second moments, the largest first: (dense, width), float64.

    Args:
        signals: (sequences, tokens, dense) each.
        width: directions to keep.
    """
    moments = (rows.T @ rows for rows in (part.flatten(0, 1).double() for part in signals))
    return torch.linalg.eigh(reduce(torch.add, moments)).eigenvectors.flip(1)[:, :width]


def attention_context(model: Any, signals: Tensor) -> dict[str, Any]:
    """What stock attention is told for whole sequences: position embeddings and an additive causal mask."""
    tokens = signals.shape[1]
    positions = torch.arange(tokens, device=signals.device)[None]
    closed = torch.full((tokens, tokens), torch.finfo(signals.dtype).min, device=signals.device).triu(1)
    return {"position_embeddings": model.model.rotary_emb(signals, positions), "attention_mask": closed[None, None]}


@torch.no_grad()
def slice_model(
    model: Any, tokens: Tensor, width: int, *, normalised: bool = False, advance: Callable[[], None] | None = None
) -> None:
    """Slice a causal language model in place; it is called as before.

    Args:
        model: of stock transformers, in evaluation mode.
        tokens: (sequences, length) to calibrate on.
        width: directions of the residual stream that are kept; if all of them, its outputs stay as they are.
        normalised: take principal directions behind the norms rather than before them.
        advance: called after every block.
    """
    inner, head = model.model, model.lm_head
    norm = Norm(model.config.hidden_size, model.config.rms_norm_eps)
    signals = [inner.embed_tokens(part.to(inner.embed_tokens.weight.device)) for part in tokens.split(CHUNK)]
    context = attention_context(model, signals[0])
    inner.layers = nn.ModuleList(SlicedLayer(layer, norm) for layer in inner.layers)
    set_weight(head, head.weight.double() * inner.norm.weight.double())  # of its own now if it was tied
    inner.norm, model.config.tie_word_embeddings = norm, False

    def directions() -> Tensor:
        return principal(map(norm, signals) if normalised else signals, width)

    basis = directions()
    set_weight(inner.embed_tokens, inner.embed_tokens.weight.double() @ basis)
    blocks = [pair for layer in inner.layers for pair in ((layer.attention, context), (layer.mlp, {}))]
    for block, block_context in blocks:
        block.read(basis)
        signals = [block(part @ basis.to(part.dtype), **block_context) for part in signals]
        if block is not blocks[-1][0]:
            basis = directions()
            block.write(basis)
        if advance:
            advance()


def sliced(arguments: argparse.Namespace) -> None:
    """Slice and score the model, unless the result is there already."""

    def change(model: Any, tokens: Tensor, shape: ModelShape) -> dict[str, Any]:
        width = width_for(shape, arguments.fraction)
        slice_model(model, tokens, width, normalised=arguments.normalised)
        counted = sizes(shape, width)
        return {
            "width": width,
            "removed_decoder": counted.removed,
            "removed_decoder_without_shortcuts": counted.removed_without_shortcuts,
        }

    rivals.run(arguments, rivals.case_of(arguments, SLICING, "normalised"), change)


def describe(runs: argparse.ArgumentParser) -> None:
    """Options of this script."""
    rivals.describe(runs)
    runs.add_argument("--normalised", action="store_true", help="principal directions behind the norms, not before")


if __name__ == "__main__":
    command_line(__doc__, describe, sliced, page)
