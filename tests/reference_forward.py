"""An independent forward pass of the registered families in plain tensor functions, a layer at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmfold.models import LayerShape, ModelShape, Role, stock_config
from llmfold.models.family_settings import FamilySettings, family_settings, rope_parameters

Weights = Mapping[Role, Tensor]


@dataclass(frozen=True)
class Reference(FamilySettings):
    """What the pass needs beside the weights: the settings, the shape, and frequencies that depend on the tokens."""

    shape: ModelShape
    frequencies_of: Callable[[int], Tensor] | None


def reference(config: Mapping[str, Any], shape: ModelShape) -> Reference:
    """The pass of a raw config."""
    settings = family_settings(config, shape)
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return Reference(**known, shape=shape, frequencies_of=_by_length(stock_config(config)))


def _by_length(stock: PretrainedConfig) -> Callable[[int], Tensor] | None:
    """Frequencies by the number of tokens, as transformers chooses them at every forward pass."""
    kind = rope_parameters(stock)["rope_type"]
    if kind not in ("longrope", "dynamic"):
        return None
    return lambda tokens: ROPE_INIT_FUNCTIONS[kind](stock, torch.device("cpu"), seq_len=tokens)[0]


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to unit root mean square in float32 and apply the gain."""
    wide = x.float() if x.dtype != torch.float64 else x
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, context: Reference) -> Tensor:
    """Apply rotary embeddings to (batch, heads, tokens, head_dim), positions counted from zero."""
    positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    frequencies = context.frequencies if context.frequencies_of is None else context.frequencies_of(x.shape[-2])
    angles = positions[:, None] * frequencies.to(x.device, torch.float32)
    cos, sin = (f(angles).mul(context.rotary_scale).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_heads(x: Tensor, weights: Weights, layer: LayerShape, context: Reference, index: int) -> Tensor:
    """Outputs of all query heads, the input of the output projection.

    Args:
        x: (batch, tokens, hidden) normalised hidden states.
        weights: the layer's tensors by role, in the dtype of ``x``.
        layer: the layer's widths.
        context: see :class:`Reference`.
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
    if window is not None and window < tokens:
        distance = torch.arange(tokens, device=x.device)[:, None] - torch.arange(tokens, device=x.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < window))
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch, tokens, -1)


def mlp_neurons(x: Tensor, weights: Weights, context: Reference) -> Tensor:
    """Activations of the intermediate neurons for (…, hidden) normalised hidden states; returns (…, n)."""
    gate = F.linear(x, weights["gate"], weights.get("gate_bias"))
    return context.activation(gate) * F.linear(x, weights["up"], weights.get("up_bias"))


def attention_block(x: Tensor, weights: Weights, layer: LayerShape, context: Reference, index: int) -> Tensor:
    """Hidden states after a layer's attention; (batch, tokens, hidden) in and out."""
    heads = attention_heads(rms_norm(x, weights["input_norm"], context.eps), weights, layer, context, index)
    return x + F.linear(heads, weights["o"], weights.get("o_bias"))


def mlp_block(x: Tensor, weights: Weights, context: Reference) -> Tensor:
    """Hidden states after a layer's MLP, from those after its attention; (…, hidden) in and out."""
    neurons = mlp_neurons(rms_norm(x, weights["post_norm"], context.eps), weights, context)
    return x + F.linear(neurons, weights["down"], weights.get("down_bias"))


def decoder_layer(x: Tensor, weights: Weights, layer: LayerShape, context: Reference, index: int) -> Tensor:
    """Hidden states after one decoder layer; (batch, tokens, hidden) in and out."""
    return mlp_block(attention_block(x, weights, layer, context, index), weights, context)
