"""Tiny stock models of every family, and the gauge moves and copies that must not change what they compute."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from reference_forward import decoder_layer, reference, rms_norm
from shapes import shape_with_stock
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmfold.models import EMBEDDING, FINAL_NORM, HEAD, LayerShape, ModelShape, tensor_name
from llmfold.models.coupling import HEAD_VALUE, KEY, QUERY, HeadCoupling
from llmfold.models.slots import Slot
from llmfold.models.stock_shape import StockShape

BASE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
EXTRA: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {}, "llama": {}}
PLAIN_HEADS = HeadCoupling(
    {
        **{role: Slot(role) for role, _ in (QUERY, KEY, HEAD_VALUE)},
        **{role: Slot(role, matrix=False) for _, role in (QUERY, KEY, HEAD_VALUE)},
        "o": Slot("o", axis=1, consumer=True),
    },
    "self_attn.o_proj",
    BASE["head_dim"],
)
"""Separate projections, with biases where a layer has them."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 8}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "mistral": ("mistral", {}),
    "mistral-odd-heads": ("mistral", {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10}),
    "qwen2": ("qwen2", {}),
    "qwen2-mqa-tied": ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "head_dim": 12}),
    "qwen3-mqa": ("qwen3", {"num_key_value_heads": 1}),
}
"""Families with every kind of head sharing, bias, tie and head size."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw_config(family: str, **fields: Any) -> dict[str, Any]:
    """config.json of a tiny model, as transformers writes it."""
    config = CONFIG_MAPPING[family](**{**BASE, **EXTRA[family], **fields})
    config.architectures = [config.__class__.__name__.replace("Config", "ForCausalLM")]
    raw: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return raw


def stock_model(raw: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A stock transformers model with random weights, gains and biases that all matter."""
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    source = generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * (0.5 if parameter.ndim == 1 else 1.2 / parameter.shape[1] ** 0.5))
    return model


def stock_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(tokens, use_cache=False).logits
    return logits


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def layer_weights(state: dict[str, Tensor], shape: ModelShape, index: int) -> dict[str, Tensor]:
    return {role: state[tensor_name(index, role)] for role, _ in shape.layer_roles(shape.layers[index])}


def with_layer(state: dict[str, Tensor], index: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, **{tensor_name(index, role): tensor for role, tensor in weights.items()}}


def random_layer(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float64, **fields: Any
) -> tuple[dict[str, Any], StockShape, dict[str, Tensor]]:
    """Config, shape and tensors of the one decoder layer of a tiny model."""
    raw = raw_config(family, **{"num_hidden_layers": 1, **fields})
    shape = shape_with_stock(raw)
    return raw, shape, layer_weights(state_of(stock_model(raw, seed, dtype)), shape, 0)


def hidden_states(shape: ModelShape, dtype: torch.dtype = torch.float64, seed: int = 7, tokens: int = 12) -> Tensor:
    return torch.randn(2, tokens, shape.hidden, generator=generator(seed), dtype=torch.float64).to(dtype)


def layer_output(
    raw: dict[str, Any], shape: ModelShape, weights: dict[str, Tensor], layer: LayerShape | None = None
) -> Tensor:
    """What a decoder layer makes of fixed random hidden states."""
    x = hidden_states(shape, weights["q"].dtype)
    return decoder_layer(x, weights, layer or shape.layers[0], reference(raw, shape), 0)


def model_logits(raw: dict[str, Any], shape: ModelShape, state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits by llmfold's own forward pass."""
    context = reference(raw, shape)
    x = F.embedding(tokens, state[EMBEDDING])
    for index, layer in enumerate(shape.layers):
        x = decoder_layer(x, layer_weights(state, shape, index), layer, context, index)
    return F.linear(rms_norm(x, state[FINAL_NORM], context.eps), state[EMBEDDING if shape.tied else HEAD])


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


def with_neuron_copies(
    weights: dict[str, Tensor], copies: Sequence[int], factors: Sequence[float], seed: int = 0
) -> dict[str, Tensor]:
    """Append a copy of each neuron in ``copies``, its up row times the factor, its down column over it; shuffle all."""
    index = torch.cat([torch.arange(len(weights["gate"])), torch.tensor(copies)])
    factor = torch.cat([torch.ones(len(weights["gate"])), torch.tensor(factors)]).to(weights["up"].dtype)
    order = torch.randperm(len(index), generator=generator(seed))
    index, factor = index[order], factor[order]
    out = dict(weights)
    out["gate"], out["up"] = weights["gate"][index], weights["up"][index] * factor[:, None]
    out["down"] = weights["down"][:, index] / factor
    if "gate_bias" in weights:
        out["gate_bias"], out["up_bias"] = weights["gate_bias"][index], weights["up_bias"][index] * factor
    return out


@dataclass(frozen=True)
class Gauge:
    """A change of a KV group that its function cannot see.

    Attributes:
        values: (dim, dim) invertible, applied to v; its inverse to o.
        turns: (dim / 2,) complex, q is multiplied by it and k by the inverse of its conjugate, pair by pair.
        head_scales: (r + 1,) positive scale of every query head and of the key, used under q/k norms only.
        heads: (r,) new order of the query heads.
    """

    values: Tensor
    turns: Tensor
    head_scales: Tensor
    heads: Tensor


def random_gauge(
    dim: int, heads: int, seed: int, *, qk_norm: bool, rescale: bool = True, permute: bool = True
) -> Gauge:
    source = generator(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=source, dtype=torch.float64))

    def scale(*size: int) -> Tensor:
        exponent = 2 * torch.rand(size, generator=source, dtype=torch.float64) - 1
        return 3**exponent if rescale else torch.ones(size, dtype=torch.float64)

    values = q * scale(1)
    if qk_norm:
        turns = torch.where(torch.rand(dim // 2, generator=source) < 0.5, -1.0, 1.0).to(torch.complex128)
        head_scales = scale(heads + 1)
    else:
        angles = 2 * torch.pi * torch.rand(dim // 2, generator=source, dtype=torch.float64)
        turns = torch.polar(scale(dim // 2), angles)
        head_scales = torch.ones(heads + 1, dtype=torch.float64)
    order = torch.randperm(heads, generator=source) if permute else torch.arange(heads)
    return Gauge(values, turns, head_scales, order)


def _turn(rows: Tensor, turns: Tensor) -> Tensor:
    """Multiply rows (…, dim, e), as complex pairs (i, i + dim / 2), by ``turns``."""
    half = rows.shape[-2] // 2
    pairs = torch.complex(rows[..., :half, :].double(), rows[..., half:, :].double()) * turns[:, None]
    return torch.cat((pairs.real, pairs.imag), -2)


def move_group(weights: dict[str, Tensor], layer: LayerShape, dim: int, group: int, gauge: Gauge) -> dict[str, Tensor]:
    """Move one KV group by a gauge, straight from the definition of attention."""
    r, out = layer.group_size, {role: tensor.clone() for role, tensor in weights.items()}
    queries = slice(group * r * dim, (group + 1) * r * dim)
    keys = slice(group * dim, (group + 1) * dim)
    q_scale, k_scale = gauge.head_scales[:-1, None, None], gauge.head_scales[-1]
    for suffix in ("", "_bias"):
        if "q" + suffix not in weights:
            continue
        q = weights["q" + suffix][queries].view(r, dim, -1)[gauge.heads]
        k, v = (weights[name + suffix][keys].view(dim, -1) for name in "kv")
        out["q" + suffix][queries] = (
            (_turn(q, gauge.turns) * q_scale).to(q.dtype).reshape(weights["q" + suffix][queries].shape)
        )
        out["k" + suffix][keys] = (
            (_turn(k, 1 / gauge.turns.conj()) * k_scale).to(k.dtype).view(weights["k" + suffix][keys].shape)
        )
        out["v" + suffix][keys] = (gauge.values @ v.double()).to(v.dtype).view(weights["v" + suffix][keys].shape)
    o = weights["o"][:, queries].view(-1, r, dim)[:, gauge.heads]
    out["o"][:, queries] = (o.double() @ gauge.values.inverse()).to(o.dtype).reshape(len(o), -1)
    return out


def take_groups(weights: dict[str, Tensor], layer: LayerShape, dim: int, index: Sequence[int]) -> dict[str, Tensor]:
    """The layer with the KV groups ``index`` (repeats allowed) in this order."""
    out, r = dict(weights), layer.group_size
    for role, count in (("q", r), ("k", 1), ("v", 1)):
        for name in (role, role + "_bias"):
            if name in weights:
                units = weights[name].view(layer.kv_heads, count * dim, *weights[name].shape[1:])
                out[name] = units[list(index)].flatten(0, 1)
    o = weights["o"].view(len(weights["o"]), layer.kv_heads, r * dim)
    out["o"] = o[:, list(index)].flatten(1)
    return out


def take_query_heads(weights: dict[str, Tensor], dim: int, index: Sequence[int]) -> dict[str, Tensor]:
    """The layer of a single KV head with the query heads ``index`` in this order."""
    out = dict(weights)
    for name in ("q", "q_bias"):
        if name in weights:
            out[name] = weights[name].view(-1, dim, *weights[name].shape[1:])[list(index)].flatten(0, 1)
    out["o"] = weights["o"].view(len(weights["o"]), -1, dim)[:, list(index)].flatten(1)
    return out


def wider(layer: LayerShape, groups: int) -> LayerShape:
    return replace(layer, heads=groups * layer.group_size, kv_heads=groups)
