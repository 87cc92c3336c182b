"""A checkpoint without some of its blocks, as if it had been stored so.

Everything behind it works as on any other checkpoint: layers are numbered from 0 without gaps, and tensors of blocks
that were repaired are those of the repair.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from llmfold.checkpoint import Checkpoint, TensorInfo
from llmfold.checkpoint.blocks import is_finite
from llmfold.errors import CheckpointError
from llmfold.models.base import LAYERS
from llmfold.models.registry import stock_config

_COUNT, _TYPES, _FIRST, _WIDTHS = "num_hidden_layers", "layer_types", "max_window_layers", "per_layer_config"


def kept_blocks(count: int, removed: Collection[int]) -> list[int]:
    """Numbers of the blocks that stay of ``count``."""
    return [index for index in range(count) if index not in removed]


def shallow_config(config: Mapping[str, Any], removed: Collection[int]) -> dict[str, Any]:
    """The raw config of a registered family without some blocks: all that goes by the number of a layer is renumbered.

    Raises:
        CheckpointError: transformers refuses the config.
    """
    count = int(config[_COUNT]) if _COUNT in config else int(stock_config(config).num_hidden_layers)
    kept = kept_blocks(count, removed)
    shallow = {**config, _COUNT: len(kept)}
    types = config.get(_TYPES)
    if types is None and config.get("use_sliding_window"):  # the class would count from max_window_layers
        types = getattr(stock_config(config), _TYPES, None)
    if types is not None:
        shallow[_TYPES] = [types[index] for index in kept]
    if isinstance(config.get(_FIRST), int):
        shallow[_FIRST] = sum(index < config[_FIRST] for index in kept)
    if config.get(_WIDTHS):
        widths = {int(index): value for index, value in config[_WIDTHS].items()}
        shallow[_WIDTHS] = {str(new): widths[old] for new, old in enumerate(kept) if old in widths}
    return shallow


class ShallowCheckpoint(Checkpoint):
    """A view of a checkpoint of a registered family; its fingerprint is that of the whole.

    Attributes:
        repaired: tensors in place of those stored, by their names in the view.
    """

    def __init__(self, whole: Checkpoint, removed: Collection[int], repaired: Mapping[str, Tensor]) -> None:
        """View ``whole`` without the blocks ``removed``, with ``repaired`` tensors by their names in the view."""
        vars(self).update(vars(whole))
        self.config = shallow_config(whole.config, removed)
        self.tensors = renumbered(whole.tensors, removed)
        self.repaired = repaired

    def read(self, name: str, part: range | None = None, *, check_finite: bool = True) -> Tensor:
        """See :meth:`Checkpoint.read`."""
        if name not in self.repaired:
            return super().read(name, part, check_finite=check_finite)
        tensor = self.repaired[name].to(self.tensors[name].dtype)
        if check_finite and not is_finite(tensor):
            raise CheckpointError(f"the repair of {name!r} overflows {tensor.dtype}: leave --depth out")
        return tensor if part is None else tensor[part.start : part.stop]


def renumbered(tensors: Mapping[str, TensorInfo], removed: Collection[int]) -> dict[str, TensorInfo]:
    """Tensors by their names without some blocks, in their order."""
    found = {}
    for name, info in tensors.items():
        index = block_of(name)
        if index in removed:
            continue
        new = name if index is None else renamed(name, index, removed)
        found[new] = replace(info, name=new, stored=info.stored or ("" if new == name else name))
    return found


def renamed(name: str, index: int, removed: Collection[int]) -> str:
    """A tensor's name in the view; it is of the block ``index``, which stays."""
    new = index - sum(gone < index for gone in removed)
    return name.replace(f"{LAYERS}.{index}.", f"{LAYERS}.{new}.", 1)


def block_of(name: str) -> int | None:
    """Number of the block that a tensor is of, None where it lies outside."""
    rest = name.removeprefix(f"{LAYERS}.")
    return int(rest.partition(".")[0]) if rest != name else None
