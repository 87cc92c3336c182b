"""The form of a model, by which an architecture of llama.cpp is found for it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmfold.engines.gguf_targets import Form, biases_among
from llmfold.models import ModelShape
from llmfold.models.family_settings import rope_parameters

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def form_of(shape: ModelShape, stock: "PretrainedConfig", stored: Iterable[str]) -> Form:
    """The form of a model.

    Args:
        shape: of the checkpoint, by its config and tensors.
        stock: its config, as transformers reads it.
        stored: names of its tensors.
    """
    return Form(
        family=shape.architecture.model_type,
        uniform=shape.uniform,
        fills=all(each.heads * shape.head_dim == shape.hidden for each in shape.layers),
        biases=biases_among(stored),
        tied=shape.tied,
        activation=str(getattr(stock, "hidden_activation", None) or stock.hidden_act),
        rope={"partial_rotary_factor": getattr(stock, "partial_rotary_factor", None), **rope_parameters(stock)},
        shares=bool(getattr(stock, "norm_topk_prob", True)),
    )
