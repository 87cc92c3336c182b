"""Which auto class of transformers loads a model: one with a language head, or a wrapper that sees images too."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class for a config; that of causal language models where both know it, or neither."""
    kind = type(config)
    wraps = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if wraps else AutoModelForCausalLM
