"""Whether stock transformers could load a checkpoint at all: asked of its own classes, before any work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError
from llmfold.models.plain import plain_generation
from llmfold.models.refusals import reason
from llmfold.models.registry import stock_config


def check_stock_builds(config: Mapping[str, Any]) -> None:
    """Build the stock model of a raw config without weights.

    Raises:
        CheckpointError: transformers cannot.
    """
    from llmfold.models.skeleton import build_stock  # takes seconds, which most plans do without

    stock = stock_config(config)
    if stock.return_dict is False:
        raise CheckpointError(
            "return_dict in config.json is false, with which no model of transformers computes: remove it"
        )
    build_stock(stock)


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
            f"{path} is refused by transformers ({reason(error)}): correct the setting, or remove the file"
        ) from error
