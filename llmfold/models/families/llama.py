"""Llama 1, 2, 3 and everything else with ``model_type: llama``."""

from llmfold.models.base import Architecture

LLAMA = Architecture(
    model_type="llama",
    prefix="Llama",
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    heads_divide_hidden=True,
    fallback="mistral",
)
