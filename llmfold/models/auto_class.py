"""Which auto class of transformers loads a model: one with a language head, or a wrapper that sees images too."""

from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from llmfold.models.own_code import runs_own_code


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class for a config; that of causal language models where both know it, or neither."""
    kind = type(config)
    wraps = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if wraps else AutoModelForCausalLM


def from_folder(folder: Path, *, remote_code: bool = False, **options: Any) -> Any:
    """What ``from_pretrained`` of a folder's auto class gives with ``options``.

    Args:
        folder: the checkpoint.
        remote_code: whether the folder's own modelling file may run, also where llmfold did not write it.
        options: further arguments of ``from_pretrained``.

    Raises:
        CheckpointError: without ``remote_code``, a modelling file that is not llmfold's.
    """
    remote_code = remote_code or runs_own_code(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    return auto_class(config).from_pretrained(folder, trust_remote_code=remote_code, **options)
