"""Qwen3: RMSNorm on every query and key head, its gain shared by all heads of a layer."""

from llmfold.models.base import Architecture

QWEN3 = Architecture(
    model_type="qwen3", prefix="Qwen3", qkv_bias="attention_bias", o_bias="attention_bias", qk_norm=True
)
