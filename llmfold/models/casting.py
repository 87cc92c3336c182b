"""Loading models in the dtype of the arithmetic, or in the one stored and cast by the matrix where memory is short."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfold.checkpoint.blocks import is_finite
from llmfold.checkpoint.dtypes import dtype_name
from llmfold.errors import CheckpointError
from llmfold.models import ARCHITECTURES, WINDOW_KEYS
from llmfold.models.auto_class import from_folder
from llmfold.models.skeleton import layers_path
from llmfold.runtime.quiet import quiet_transformers

BLOCK_BYTES = 64_000_000
"""What a cast part of a weight matrix takes at most; a row at least is cast."""


def load_model(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    as_stored: bool = False,
    remote_code: bool = False,
    **placement: Any,
) -> Any:
    """Load a causal language model of stock transformers in evaluation mode.

    Args:
        folder: the checkpoint.
        dtype: of the arithmetic.
        device: where the model goes, unless ``placement`` says that.
        as_stored: hold the weights in their stored dtype and cast them while they are used; see :func:`cast_in_use`.
        remote_code: whether the folder's own modelling file may run.
        placement: further arguments of ``from_pretrained``, e.g. ``device_map`` and ``max_memory``.
    """
    with quiet_transformers():
        stored = "auto" if as_stored else dtype
        model = from_folder(folder, remote_code=remote_code, dtype=stored, **placement).eval()
    _forget_leftovers(model.config)
    if "device_map" not in placement:
        model = model.to(device)
    if as_stored:
        cast_in_use(model, dtype)
    return model


def _forget_leftovers(config: Any) -> None:
    """Remove windows that the family does not read, but that caches of transformers would cut keys and values to."""
    family = ARCHITECTURES.get(config.model_type)
    if family is not None and not family.windows:
        for key in WINDOW_KEYS:
            vars(config).pop(key, None)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a stock model."""
    layers: nn.ModuleList = model.get_submodule(layers_path(model))
    return layers


def not_finite(model: Any, tokens: Tensor) -> str:
    """What a model does that gives NaN or infinity: a predicate that names the layer and the remedy.

    Judged in the dtype of its arithmetic: one whose range is less than float32's overflows, and the model is sound.

    Args:
        model: of transformers, on its devices.
        tokens: (sequences, length) that it was given.
    """
    first: list[tuple[int, torch.dtype]] = []

    def look(index: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if not first and not is_finite(states):
            first.append((index, states.dtype))

    hooks = [layer.register_forward_hook(partial(look, i)) for i, layer in enumerate(decoder_layers(model))]
    try:
        with torch.inference_mode():
            end = model.base_model(tokens, use_cache=False)[0]
    finally:
        for hook in hooks:
            hook.remove()
    dtype = first[0][1] if first else end.dtype
    where = f" in layer {first[0][0]}" if first else ""
    if torch.finfo(dtype).max < torch.finfo(torch.float32).max:
        return f"overflows {dtype_name(dtype)}{where}: --compute-dtype float32"
    return f"computes NaN or infinity{where}: it is damaged"


def refuse_not_finite(model: Any) -> None:
    """Have every forward pass of ``model`` raise CheckpointError where its logits are NaN or infinite."""

    def check(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if not is_finite(output.logits):
            raise CheckpointError(f"the model {not_finite(model, inputs[0] if inputs else named['input_ids'])}")

    model.register_forward_hook(check, with_kwargs=True)


def cast_in_use(model: nn.Module, dtype: torch.dtype) -> None:
    """Have ``model`` compute in ``dtype`` while its matrices stay in theirs; only norms and biases are cast for good.

    Rows of an embedding are cast when they are looked up, and every weight matrix block by block when it is multiplied.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _module, _inputs, rows: rows.to(dtype))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, nn.Linear) and name == "weight"):
                parameter.data = parameter.data.to(dtype)
        if isinstance(module, nn.Linear) and module.weight.dtype != dtype:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def cast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (…, in) by a weight of another dtype, which is cast by blocks of rows; (…, out) in the dtype of ``x``.

    Args:
        x: (…, in).
        weight: (out, in) of any float dtype.
        bias: (out,) in the dtype of ``x``.
    """
    blocks = row_blocks(weight, x.dtype)
    biases = [None] * len(blocks) if bias is None else torch.split(bias, len(blocks[0]))
    products = [F.linear(x, block.to(x.dtype), part) for block, part in zip(blocks, biases, strict=True)]
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def row_blocks(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Rows of a weight (out, in), as many at once as may be cast to ``dtype``."""
    return torch.split(weight, max(1, BLOCK_BYTES // (dtype.itemsize * weight.shape[1])))


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    return cast_linear(x, module.weight, module.bias)
