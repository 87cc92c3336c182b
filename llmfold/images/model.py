"""An image model that is opened: its stock class, its weights where they are there, its couplings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmfold.checkpoint import Checkpoint, Source
from llmfold.checkpoint.accept import refuse_quantised_config
from llmfold.folder_files import raw_config
from llmfold.images.stock import build, example_inputs, read_config, state_shapes, stock_class
from llmfold.models.layout import Layout
from llmfold.models.refusals import missing
from llmfold.modules.coupling import Couplings
from llmfold.modules.plan import tried_couplings


@dataclass(frozen=True, eq=False)
class ImageModel:
    """An image model.

    Attributes:
        source: where it is.
        raw: config.json as it was read.
        kind: its stock class.
        config: of the class.
        module: in float32 and in evaluation.
        inputs: positional arguments of its forward pass, random.
        checkpoint: its weights, None where it was opened without.
        layout: from stored names to the module's, likewise.
        heads: fraction of the heads of every attention that goes.
    """

    source: Source
    raw: Mapping[str, Any]
    kind: type[PreTrainedModel]
    config: PretrainedConfig
    module: PreTrainedModel
    inputs: tuple[Tensor, ...]
    checkpoint: Checkpoint | None = None
    layout: Layout | None = None
    heads: float = 0.0

    @cached_property
    def couplings(self) -> Couplings:
        """Couplings that the probe confirms; raises UsageError where there are none."""
        return tried_couplings(self.module, self.inputs, heads=self.heads > 0)

    @property
    def dtype(self) -> torch.dtype:
        """In which the weights are stored, or float32 where that is not known."""
        if self.checkpoint is not None:
            return self.checkpoint.dtype
        told = getattr(torch, str(self.raw.get("dtype") or self.raw.get("torch_dtype")), None)
        return told if isinstance(told, torch.dtype) else torch.float32


def open_image_model(source: Source, name: str, *, heads: float = 0.0) -> ImageModel:
    """Open a model with its weights, all of them checked against its stock class.

    Args:
        source: whose folder holds config and safetensors.
        name: of the stock class.
        heads: fraction of the heads of every attention that goes.

    Raises:
        CheckpointError: something is missing, damaged, unsafe or not what the class has.
    """
    checkpoint = Checkpoint.open(source.folder)
    kind = stock_class(name, checkpoint.config)
    config = read_config(kind, checkpoint.config)
    module = build(kind, config, weights=False)
    shapes = state_shapes(module)
    layout = Layout(module, shapes, checkpoint.shapes)
    for absent in layout.missing(shapes)[:1]:
        raise missing(absent)
    checkpoint.side_files()  # refuses those that could not be copied when all is done
    inputs = example_inputs(kind, config, source.folder)
    module.load_state_dict(in_single_precision(layout, checkpoint.read), assign=True)
    return ImageModel(source, checkpoint.config, kind, config, module, inputs, checkpoint, layout, heads)


def in_single_precision(layout: Layout, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """All tensors of the module, weights in float32 and counters as they are; ``read`` takes names of the files."""
    tensors = layout.load(layout.groups, read)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def open_without_weights(source: Source, name: str, *, heads: float = 0.0) -> ImageModel:
    """The model of a config alone, with random weights: enough to plan.

    Raises:
        CheckpointError: the config is no such model's.
    """
    raw = raw_config(source.folder)
    refuse_quantised_config(raw, source.name)
    kind = stock_class(name, raw)
    config = read_config(kind, raw)
    module = build(kind, config, weights=True)
    inputs = example_inputs(kind, config, source.folder)
    return ImageModel(source, raw, kind, config, module, inputs, heads=heads)
