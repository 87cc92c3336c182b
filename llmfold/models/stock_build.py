"""Whether stock transformers could load a checkpoint at all: asked of its own classes, before any work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError
from llmfold.models.plain import plain_generation
from llmfold.models.registry import stock_config


def check_stock_builds(config: Mapping[str, Any]) -> None:
    """Build the stock model of a raw config without weights.

    Raises:
        CheckpointError: transformers cannot.
    """
    import torch
    from transformers import AutoModelForCausalLM  # takes seconds, which most plans do without

    from llmfold.runtime.quiet import quiet_transformers

    stock = stock_config(config)
    if stock.return_dict is False:
        raise CheckpointError(
            "return_dict in config.json is false, with which no model of transformers computes: remove it"
        )
    try:
        with quiet_transformers(), torch.device("meta"):
            AutoModelForCausalLM.from_config(stock, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # any kind, by the setting that is wrong
        raise CheckpointError(
            f"transformers cannot build a {stock.model_type} model of config.json ({_reason(error)}): correct the "
            "setting, or remove it"
        ) from error


def check_generation_config(settings: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError where transformers refuses a generation config, and with it the model.

    Args:
        settings: what the file says.
        path: of the file.
    """
    if plain_generation(settings):
        return
    from transformers import GenerationConfig

    from llmfold.runtime.quiet import quiet_transformers

    try:
        with quiet_transformers():
            GenerationConfig.from_dict(dict(settings))
    except Exception as error:  # any kind, by the setting that is wrong
        raise CheckpointError(
            f"{path} is refused by transformers ({_reason(error)}): correct the setting, or remove the file"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
