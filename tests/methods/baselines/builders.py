"""A baseline prepared on a small model, and what stock transformers says of the same tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmfold import FoldConfig
from llmfold.checkpoint import Checkpoint
from llmfold.methods.base import FoldContext, read_layer
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.method import method_of
from llmfold.methods.source import token_source
from llmfold.models import LayerShape, Role
from llmfold.models.tying import running_shape

MEASURE = {"data": "self", "num_samples": 10, "sequence_length": 16}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gqa": ("llama", {}),
    "mha": ("llama", {"num_key_value_heads": 4}),
    "mqa": ("llama", {"num_key_value_heads": 1}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


class Prepared:
    """A baseline of one small model with its tokens and its stock model."""

    def __init__(self, folder: Path, kind: str, method: str, **options: Any) -> None:
        family, overrides = KINDS[kind]
        self.source = tiny_model(folder / "model", family, **overrides)
        measured = {} if method in ("random", "magnitude") else MEASURE
        config = FoldConfig(
            str(self.source), method=method, **{"mlp_ratio": 0.25, "attention_ratio": 0.5, **measured, **options}
        )
        self.checkpoint = Checkpoint.open(self.source)
        self.shape = running_shape(self.checkpoint)
        work = folder / "work"
        work.mkdir()
        context = FoldContext(config, self.checkpoint, self.shape, work, torch.device("cpu"))
        self.pruner: Pruner = _pruner(context)
        self.tokens = token_source(context, lambda stage: None).tokens if measured else None
        self.layer: LayerShape = self.shape.layers[0]
        self.units = self.layer.kv_heads if self.layer.kv_heads > 1 else self.layer.heads

    def weights(self, index: int) -> dict[Role, Tensor]:
        return read_layer(self.checkpoint, self.shape, index)

    def stock(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.source, dtype=torch.float32).eval()


def _pruner(context: FoldContext) -> Pruner:
    layers = method_of(context.config.method).build(context, lambda stage: None)
    assert isinstance(layers, Pruner)
    return layers


def consumer_inputs(model: PreTrainedModel, tokens: Tensor) -> list[dict[str, Tensor]]:
    """By layer, the inputs (rows, features) of ``o`` and ``down``, and their outputs as ``o_out`` and ``down_out``."""
    found: list[dict[str, Tensor]] = [{} for _ in model.model.layers]

    def watch(index: int, role: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[index][role] = inputs[0].flatten(0, 1).double()
            found[index][role + "_out"] = output.flatten(0, 1).double()

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_hook(watch(index, "o"))
        layer.mlp.down_proj.register_forward_hook(watch(index, "down"))
    with torch.no_grad():
        model(tokens)
    return found
