"""Building a stock model without weights, whatever its size: parameters on the meta device, buffers computed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from llmfold.errors import CheckpointError
from llmfold.models.auto_class import auto_class
from llmfold.models.refusals import reason
from llmfold.models.settings import text_config
from llmfold.runtime.quiet import quiet_transformers

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)
_LARGE = 1_000_000


def build_stock(config: PretrainedConfig) -> PreTrainedModel:
    """The stock model of a config: parameters on the meta device, buffers computed.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    try:
        with without_weights():
            loader = auto_class(config)
            model: PreTrainedModel = loader.from_config(config, dtype=torch.float32, trust_remote_code=False)
            model.set_experts_implementation("eager")
    except Exception as error:  # any kind, by the setting that is wrong
        raise CheckpointError(
            f"transformers cannot build a {config.model_type} model of config.json ({reason(error)}): correct the "
            "setting, or remove it"
        ) from error
    return model.eval()


@contextmanager
def without_weights() -> Iterator[None]:
    """Models that are built inside have their parameters on the meta device, and buffers computed."""
    with quiet_transformers(), no_init_weights(), init_empty_weights(include_buffers=False), _LargeOnMeta():
        yield


class _LargeOnMeta(TorchFunctionMode):
    """Has room for matrices made on the meta device at once: that of a stack of experts would not fit in memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if function in _FACTORIES and named.get("device") is None:
            sizes = args[0] if args and isinstance(args[0], tuple | list | torch.Size) else args
            if math.prod(size for size in sizes if isinstance(size, int)) >= _LARGE:
                named["device"] = "meta"
        return function(*args, **named)


def layers_path(model: PreTrainedModel) -> str:
    """Path of the list of decoder layers: the first list of as many modules as the config has layers.

    Raises:
        CheckpointError: there is none.
    """
    count = getattr(text_config(model.config), "num_hidden_layers", None)
    decoder = model.get_decoder()
    start = next((name for name, module in model.named_modules() if module is decoder), "")
    places = [*decoder.named_modules(prefix=start), *model.named_modules()]
    lists = [(path, module) for path, module in places if isinstance(module, nn.ModuleList) and len(module)]
    for path, module in lists:
        if len(module) == count:
            return str(path)
    if lists:
        return str(lists[0][0])
    raise CheckpointError(f"{type(model).__name__} has no list of decoder layers, so there is nothing to fold")
