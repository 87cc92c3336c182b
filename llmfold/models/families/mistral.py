"""Mistral: Llama without biases, with an optional sliding window and any head count."""

from llmfold.models.base import Architecture

MISTRAL = Architecture(model_type="mistral", prefix="Mistral")
