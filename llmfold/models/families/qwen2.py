"""Qwen2 and Qwen2.5: biases on the q, k and v projections."""

from llmfold.models.base import Architecture

QWEN2 = Architecture(model_type="qwen2", prefix="Qwen2", qkv_bias=True)
