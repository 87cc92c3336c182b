"""One decoder layer at a time in plain tensor functions, independent of transformers' modelling code.

The same few functions serve the reload check and the streaming of hidden states. Rotary frequencies of scaled variants
come from transformers' own table, since they are definitions rather than code.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmfold.errors import CheckpointError
from llmfold.models import LayerShape, ModelShape, Role, stock_config

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
    """

    shape: ModelShape
    eps: float
    activation: Callable[[Tensor], Tensor]
    frequencies: Tensor
    rotary_scale: float
    windows: tuple[int | None, ...]


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
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise CheckpointError(
            f"layer_types in config.json has {unknown[0]!r}; supported are full_attention and sliding_attention"
        )
    if "sliding_attention" in types and (window is None or window < 1):
        raise CheckpointError(
            "config.json gives layers a sliding window but sets none of 1 token or more: set sliding_window (and "
            "use_sliding_window, where the family has it), or make all layer_types full_attention"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def forward_context(config: Mapping[str, Any], shape: ModelShape) -> ForwardContext:
    """Build the context of a raw config.

    Raises:
        CheckpointError: transformers has no such rotary variant or activation, or the layers' windows are not defined.
    """
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stock = stock_config(config)
    if stock.hidden_act not in ACT2FN:
        raise CheckpointError(
            f"hidden_act {stock.hidden_act!r} in config.json is not known to transformers: silu is what Llama has"
        )
    rope = rope_parameters(stock)
    if rope["rope_type"] not in {"default", *ROPE_INIT_FUNCTIONS}:
        known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
        raise CheckpointError(f"rope_type {rope['rope_type']!r} in config.json is not supported; supported are {known}")
    try:
        if rope["rope_type"] == "default":
            exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
            frequencies, scale = 1.0 / rope["rope_theta"] ** exponent, 1.0
        else:
            frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](stock, torch.device("cpu"))
        context_scale = float(scale)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
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
    windows = _windows(stock, shape)
    return ForwardContext(shape, stock.rms_norm_eps, ACT2FN[stock.hidden_act], frequencies, context_scale, windows)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to unit root mean square in float32 and apply the gain."""
    wide = x.float() if x.dtype != torch.float64 else x
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, context: ForwardContext) -> Tensor:
    """Apply rotary embeddings to (batch, heads, tokens, head_dim), positions counted from zero."""
    positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angles = positions[:, None] * context.frequencies.to(x.device, torch.float32)
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
