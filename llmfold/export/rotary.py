"""Rotary positions and windows of attention in the words of GGUF."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmfold.models import ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Rotary:
    """What is written of rotary positions.

    Attributes:
        base: the base of the frequencies.
        kind: ``linear`` or ``yarn``, where llama.cpp scales positions by itself.
        scaling: numbers that this needs, by their names in the config.
        factors: what each frequency is divided by (head_dim / 2), where the file says so; float32.
    """

    base: float
    kind: str | None
    scaling: dict[str, float]
    factors: Tensor | None


def rotary_of(rope: Mapping[str, Any], stock: "PretrainedConfig", shape: ModelShape) -> Rotary:
    """Rotary positions of a model whose target computes them.

    Args:
        rope: rotary parameters of its config.
        stock: the config.
        shape: of the model.
    """
    kind, base = str(rope.get("rope_type", "default")), float(rope.get("rope_theta", 10000.0))
    if kind == "default":
        return Rotary(base, None, {}, None)
    if kind == "llama3":
        return Rotary(base, None, {}, _factors(stock, shape, base))
    if kind == "linear":
        return Rotary(base, kind, {"factor": float(rope["factor"])}, None)
    return Rotary(base, kind, _yarn(rope, shape), None)


def context_length(stock: "PretrainedConfig", shape: ModelShape) -> int:
    """Positions up to which attention to everything, as llama.cpp computes it, is what the model computes."""
    window, kinds = getattr(stock, "sliding_window", None), getattr(stock, "layer_types", None)
    slides = shape.architecture.windows and isinstance(window, int) and (not kinds or "sliding_attention" in kinds)
    return min(shape.positions, window) if slides and window else shape.positions


def _yarn(rope: Mapping[str, Any], shape: ModelShape) -> dict[str, float]:
    numbers = {key: float(rope[key]) for key in ("factor", "beta_fast", "beta_slow") if rope.get(key) is not None}
    return {**numbers, "original": float(rope.get("original_max_position_embeddings") or shape.positions)}


def _factors(stock: "PretrainedConfig", shape: ModelShape, base: float) -> Tensor:
    """How much slower than plain ones the frequencies are (head_dim / 2), float32."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = base ** -(torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    scaled: Tensor = ROPE_INIT_FUNCTIONS["llama3"](stock, torch.device("cpu"))[0]
    return plain / scaled.float()
