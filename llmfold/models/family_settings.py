"""What the config of a registered family decides beside widths: rotary embeddings, windows, activation, epsilon.

Its stock class decides what is computed. This says of a config, before anything is built, what no class could compute,
and of two configs whether they agree in all that a short probe barely sees. Rotary frequencies of scaled variants come
from transformers' own table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmfold.errors import CheckpointError
from llmfold.models import ModelShape, stock_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class FamilySettings:
    """What decides the function beside widths and weights.

    Attributes:
        eps: of every RMSNorm.
        activation: of the gate.
        frequencies: (head_dim / 2,) rotary frequencies in radians per position.
        rotary_scale: factor on cosines and sines (yarn and its kin).
        windows: sliding window of each layer in tokens, None for full attention.
    """

    eps: float
    activation: Callable[[Tensor], Tensor]
    frequencies: Tensor
    rotary_scale: float
    windows: tuple[int | None, ...]


def family_settings(config: Mapping[str, Any], shape: ModelShape) -> FamilySettings:
    """Read the settings of a raw config.

    Raises:
        CheckpointError: transformers has no such rotary variant or activation, a number is none that can be computed
            with, or the layers' windows are not defined.
    """
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
    return FamilySettings(eps, ACT2FN[stock.hidden_act], frequencies, scale, _windows(stock, shape))


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
