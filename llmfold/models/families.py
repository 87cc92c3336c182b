"""The families of models that ship with llmfold."""

from llmfold.models.base import Architecture

FAMILIES = (
    # Llama 1, 2, 3 and everything else with that model type.
    Architecture(
        model_type="llama",
        prefix="Llama",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        heads_divide_hidden=True,
        windows=False,
        fallback="mistral",
    ),
    # Llama without biases, with an optional sliding window and any head count.
    Architecture(model_type="mistral", prefix="Mistral"),
    # Qwen2 and Qwen2.5: biases on the q, k and v projections.
    Architecture(model_type="qwen2", prefix="Qwen2", qkv_bias=True),
    # RMSNorm on every query and key head, its gain shared by all heads of a layer.
    Architecture(model_type="qwen3", prefix="Qwen3", qkv_bias="attention_bias", o_bias="attention_bias", qk_norm=True),
)
