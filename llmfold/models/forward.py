"""One decoder layer at a time in plain tensor functions, independent of transformers' modelling code.

The same few functions serve the reload check and the streaming of hidden states. Rotary frequencies of scaled variants
come from transformers' own table, since they are definitions rather than code.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError
from llmfold.models import FINAL_NORM, LayerShape, ModelShape, Role, embedding_name, head_name, stock_config
from llmfold.models.context import Context
from llmfold.models.coupling import NeuronCoupling
from llmfold.models.norm import rms_norm as rms_norm
from llmfold.models.unembedding import LMHead
from llmfold.runtime.hidden_states import chunks

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Weights = Mapping[Role, Tensor]


@dataclass(frozen=True)
class ForwardContext:
    """What a forward pass needs beside the weights.

    Attributes:
        shape: the model's shape.
        eps: of every RMSNorm.
        activation: of the gate.
        frequencies: (head_dim / 2,) rotary frequencies in radians per position.
        rotary_scale: factor on cosines and sines (yarn and its kin).
        windows: sliding window of each layer in tokens, None for full attention.
        frequencies_of: those of a number of tokens, where they depend on it (longrope, dynamic); else None.
    """

    shape: ModelShape
    eps: float
    activation: Callable[[Tensor], Tensor]
    frequencies: Tensor
    rotary_scale: float
    windows: tuple[int | None, ...]
    frequencies_of: Callable[[int], Tensor] | None = None

    @property
    def inner_width(self) -> int:
        """Kept of a layer's inside are the states after its attention."""
        return self.shape.hidden

    def through(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor, Tensor]:
        """The states after a layer's attention, and those after the layer; see :class:`Context`."""
        between = attention_block(x, weights, self.shape.layers[index], self, index)
        return between, mlp_block(between, weights, self)

    def layer(self, x: Tensor, weights: Weights, index: int, widths: LayerShape | None = None) -> Tensor:
        """See :class:`Context`."""
        return decoder_layer(x, weights, widths or self.shape.layers[index], self, index)

    def heads(self, x: Tensor, weights: Weights, index: int) -> Tensor:
        """See :class:`Context`."""
        normed = rms_norm(x, weights["input_norm"], self.eps)
        return attention_heads(normed, weights, self.shape.layers[index], self, index)

    def disturbed(self, inside: Tensor, after: Tensor) -> Tensor:
        """See :class:`Context`."""
        return inside

    def mlp_inputs(self, inside: Tensor, weights: Weights, coupling: NeuronCoupling, index: int) -> Tensor:
        """See :class:`Context`."""
        return rms_norm(inside, weights["post_norm"], self.eps)

    def mlp_outputs(self, inside: Tensor, after: Tensor, x: Tensor, mlp: Weights, coupling: NeuronCoupling) -> Tensor:
        """See :class:`Context`."""
        return after - inside

    def neurons(self, x: Tensor, mlp: Weights, coupling: NeuronCoupling) -> Tensor:
        """See :class:`Context`."""
        return mlp_neurons(x, mlp, self)

    def routing(self, x: Tensor, weights: Weights, index: int, coupling: NeuronCoupling) -> tuple[Tensor, Tensor]:
        """These families have no experts."""
        raise TypeError(f"{self.shape.architecture.causal_lm} has no experts")

    def differentiable(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Context`."""
        between, after = self.through(x, weights, index)
        return between, after, after

    def embed(self, checkpoint: Checkpoint, tokens: Tensor, device: torch.device) -> Iterator[Tensor]:
        """See :class:`Context`."""
        table = checkpoint.read(embedding_name(checkpoint.tensors), check_finite=False)
        for part in chunks(len(tokens)):
            yield F.embedding(tokens[part], table).float().to(device)

    def ends(self, checkpoint: Checkpoint, device: torch.device) -> LMHead:
        """See :class:`Context`."""
        table = checkpoint.read(head_name(checkpoint.tensors, self.shape.tied), check_finite=False)
        gain = checkpoint.read(FINAL_NORM, check_finite=False)
        return LMHead(gain.to(device, torch.float32), table.to(device), self.eps)


def rope_parameters(config: "PretrainedConfig") -> dict[str, Any]:
    """Rotary parameters of a config of transformers 5 (one dict) or 4 (``rope_theta`` and ``rope_scaling``)."""
    merged = getattr(config, "rope_parameters", None)
    if merged:
        return dict(merged)
    scaling = dict(getattr(config, "rope_scaling", None) or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    return {"rope_theta": float(getattr(config, "rope_theta", 10000.0)), **scaling}


def _windows(config: "PretrainedConfig", shape: ModelShape) -> tuple[int | None, ...]:
    """Sliding window of every layer, by the settings that the family reads."""
    count = len(shape.layers)
    if not shape.architecture.windows:
        return (None,) * count
    window, types = (getattr(config, key, None) for key in ("sliding_window", "layer_types"))
    if types is None:
        types = ["full_attention" if window is None else "sliding_attention"] * count
    if not isinstance(types, list) or len(types) != count:
        raise CheckpointError(f"layer_types in config.json is no list of {count} words, one for each layer")
    unknown = [kind for kind in types if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise CheckpointError(
            f"layer_types in config.json has {unknown[0]!r}; supported are full_attention and sliding_attention"
        )
    if "sliding_attention" in types and not (isinstance(window, int) and window >= 1):
        raise CheckpointError(
            "config.json gives layers a sliding window but sets none of 1 token or more: set sliding_window (and "
            "use_sliding_window, where the family has it), or make all layer_types full_attention"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def without_windows(context: Context) -> Context:
    """The same with full attention in all layers, where the family is described in llmfold."""
    if isinstance(context, ForwardContext):
        return replace(context, windows=(None,) * len(context.windows))
    return context


def forward_context(config: Mapping[str, Any], shape: ModelShape) -> Context:
    """Build the context of a raw config: by the stock model, or by our own forward pass for families that it knows.

    Raises:
        CheckpointError: transformers has no such rotary variant or activation, a number is none that can be computed
            with, or the layers' windows are not defined.
    """
    if not shape.architecture.described:
        from llmfold.models.stock_forward import StockContext
        from llmfold.models.stock_shape import StockShape  # builds on transformers' models

        assert isinstance(shape, StockShape)
        return StockContext(shape)
    return own_context(config, shape)


def own_context(config: Mapping[str, Any], shape: ModelShape) -> ForwardContext:
    """The context of our own forward pass; errors as of :func:`forward_context`."""
    from transformers.activations import ACT2FN

    stock = stock_config(config)
    if not isinstance(stock.hidden_act, str) or stock.hidden_act not in ACT2FN:
        raise CheckpointError(
            f"hidden_act {stock.hidden_act!r} in config.json is not known to transformers: write silu, which Llama has"
        )
    eps = stock.rms_norm_eps
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
        raise CheckpointError(f"rms_norm_eps in config.json is {eps!r}, not a small number: 1e-6 is common")
    frequencies, scale = _rotary(stock, shape)
    activation, windows = ACT2FN[stock.hidden_act], _windows(stock, shape)
    return ForwardContext(shape, eps, activation, frequencies, scale, windows, _by_length(stock))


def _rotary(stock: "PretrainedConfig", shape: ModelShape) -> tuple[Tensor, float]:
    """Frequencies and scale, which transformers computes of any numbers that a config holds."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_parameters(stock)
    kind = rope.get("rope_type")
    if not isinstance(kind, str) or kind not in {"default", *ROPE_INIT_FUNCTIONS}:
        known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
        raise CheckpointError(f"rope_type {kind!r} in config.json is not supported; supported are {known}")
    try:
        if kind == "default":
            exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
            frequencies, scale = 1.0 / rope["rope_theta"] ** exponent, 1.0
        else:
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](stock, torch.device("cpu"))
        finite = bool(torch.isfinite(frequencies).all()) and math.isfinite(scale)
    except Exception as error:  # of values that are missing or are no numbers
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"rotary parameters in config.json cannot be used ({type(error).__name__}: {reason}): correct "
            "rope_parameters, or rope_theta and rope_scaling"
        ) from error
    if 2 * len(frequencies) != shape.head_dim:
        raise CheckpointError(
            f"config.json turns {2 * len(frequencies)} of the {shape.head_dim} dimensions of a head, which "
            f"{shape.architecture.causal_lm} cannot: remove partial_rotary_factor"
        )
    if not finite:
        raise CheckpointError(
            f"the rotary parameters of {kind} in config.json give no frequency for every dimension: correct them"
        )
    return frequencies, float(scale)


def _by_length(stock: "PretrainedConfig") -> Callable[[int], Tensor] | None:
    """Frequencies by the number of tokens, as transformers chooses them at every forward pass."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = rope_parameters(stock)["rope_type"]
    if kind not in ("longrope", "dynamic"):
        return None
    compute = ROPE_INIT_FUNCTIONS[kind]
    return lambda tokens: compute(stock, torch.device("cpu"), seq_len=tokens)[0]


def rotate(x: Tensor, context: ForwardContext) -> Tensor:
    """Apply rotary embeddings to (batch, heads, tokens, head_dim), positions counted from zero."""
    positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    frequencies = context.frequencies if context.frequencies_of is None else context.frequencies_of(x.shape[-2])
    angles = positions[:, None] * frequencies.to(x.device, torch.float32)
    cos, sin = (f(angles).mul(context.rotary_scale).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_heads(x: Tensor, weights: Weights, layer: LayerShape, context: ForwardContext, index: int) -> Tensor:
    """Outputs of all query heads, the input of the output projection.

    Args:
        x: (batch, tokens, hidden) normalised hidden states.
        weights: the layer's tensors by role, in the dtype of ``x``.
        layer: the layer's widths.
        context: see :class:`ForwardContext`.
        index: the layer's index, which decides its window.

    Returns:
        (batch, tokens, heads * head_dim).
    """
    batch, tokens, _ = x.shape

    def heads(role: Role) -> Tensor:
        out = F.linear(x, weights[role], weights.get(role + "_bias")).view(batch, tokens, -1, context.shape.head_dim)
        if role + "_norm" in weights:
            out = rms_norm(out, weights[role + "_norm"], context.eps)
        return out.transpose(1, 2)

    q, k, v = rotate(heads("q"), context), rotate(heads("k"), context), heads("v")
    k, v = (t.repeat_interleave(layer.group_size, dim=1) for t in (k, v))
    window = context.windows[index]
    with _repeatable(q):
        if window is not None and window < tokens:
            distance = torch.arange(tokens, device=x.device)[:, None] - torch.arange(tokens, device=x.device)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < window))
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch, tokens, -1)


def _repeatable(q: Tensor) -> AbstractContextManager[None]:
    """Where a GPU is to give gradients, attention that adds them up in the same order every time."""
    return sdpa_kernel(SDPBackend.MATH) if q.is_cuda and q.requires_grad else nullcontext()


def mlp_neurons(x: Tensor, weights: Weights, context: ForwardContext) -> Tensor:
    """Activations of the intermediate neurons for (…, hidden) normalised hidden states; returns (…, n)."""
    gate = F.linear(x, weights["gate"], weights.get("gate_bias"))
    return context.activation(gate) * F.linear(x, weights["up"], weights.get("up_bias"))


def attention_block(x: Tensor, weights: Weights, layer: LayerShape, context: ForwardContext, index: int) -> Tensor:
    """Hidden states after a layer's attention; (batch, tokens, hidden) in and out."""
    heads = attention_heads(rms_norm(x, weights["input_norm"], context.eps), weights, layer, context, index)
    return x + F.linear(heads, weights["o"], weights.get("o_bias"))


def mlp_block(x: Tensor, weights: Weights, context: ForwardContext) -> Tensor:
    """Hidden states after a layer's MLP, from those after its attention; (…, hidden) in and out."""
    neurons = mlp_neurons(rms_norm(x, weights["post_norm"], context.eps), weights, context)
    return x + F.linear(neurons, weights["down"], weights.get("down_bias"))


def decoder_layer(x: Tensor, weights: Weights, layer: LayerShape, context: ForwardContext, index: int) -> Tensor:
    """Hidden states after one decoder layer; (batch, tokens, hidden) in and out."""
    return mlp_block(attention_block(x, weights, layer, context, index), weights, context)
