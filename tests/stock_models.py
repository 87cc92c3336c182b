"""Tiny models of families as their stock classes tell them, each built once."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from support import SIZES
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llmfold.models.base import role_of
from llmfold.models.read_shape import stock_shape
from llmfold.models.stock_shape import StockShape

WINDOW = 5
"""Of families with sliding windows; shorter than the tokens they are tried on."""
_COMMON: dict[str, Any] = {
    **SIZES,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2}
_FULL = ["full_attention"] * 2
_OWN: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "activation_sparsity_pattern": None,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "layer_types": _FULL,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 96,
    },
    "gpt2": {"n_inner": 48},
    "gpt_oss": _EXPERTS,
    "llama4_text": {
        **_EXPERTS,
        "attention_chunk_size": 32,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 64,
        "layer_types": _FULL,
    },
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def tiny_config(family: str) -> PretrainedConfig:
    """The config of a tiny model."""
    return CONFIG_MAPPING[family](**{**_COMMON, **_OWN.get(family, {})})


@dataclass(frozen=True)
class Tiny:
    """A tiny random model of transformers, and the shape that llmfold reads off its class."""

    config: PretrainedConfig
    model: PreTrainedModel
    shape: StockShape

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        return dict(self.model.state_dict())

    @property
    def outside(self) -> dict[str, Tensor]:
        """Those outside its layers."""
        return {name: tensor for name, tensor in self.tensors.items() if not self.shape.stock.is_inside(name)}

    def layer(self, index: int) -> dict[str, Tensor]:
        """Those of a layer by role."""
        start = f"{self.shape.stock.path}.{index}."
        return {role_of(name[len(start) :]): t for name, t in self.tensors.items() if name.startswith(start)}


@cache
def tiny_stock(family: str) -> Tiny:
    """Build a model; every parameter is drawn anew, so that none of them can be forgotten unnoticed."""
    config = tiny_config(family)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    model.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise)
    return Tiny(config, model, stock_shape(config))


def some_tokens(sequences: int = 2, length: int = 12) -> Tensor:
    """Tokens of the tiny vocabulary."""
    return torch.randint(3, 96, (sequences, length), generator=torch.Generator().manual_seed(1))
