"""The stock class of an image model: built from a raw config, with weights or without, and what it looks at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmfold.errors import CheckpointError
from llmfold.folder_files import regular_file
from llmfold.jsonfile import read_object
from llmfold.models.refusals import reason
from llmfold.models.skeleton import without_weights
from llmfold.runtime.quiet import quiet_transformers

PREPROCESSOR = "preprocessor_config.json"
USUAL_SIDE = 224
"""Height and width in pixels where neither config says them."""
BATCH = 2
_LARGEST_SIDE = 4096
_WORDS = 16
_SIZES = ("crop_size", "size")
_PARTS = ("vision_config", "text_config")
Parts = dict[str | None, PretrainedConfig]


def stock_class(name: str, raw: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class of transformers that a config names.

    Raises:
        CheckpointError: there is none, or the config asks for code of its own.
    """
    if raw.get("auto_map"):
        raise CheckpointError(
            "the model is computed by code of its own (auto_map in config.json), which llmfold does not run: if it "
            f"computes what {name} does, remove auto_map from config.json"
        )
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(f"transformers {transformers.__version__} has no class {name}, which config.json names")
    return found


def read_config(kind: type[PreTrainedModel], raw: Mapping[str, Any]) -> PretrainedConfig:
    """The config of a class from what config.json says; raises CheckpointError where transformers refuses it."""
    try:
        with quiet_transformers():
            config: PretrainedConfig = kind.config_class.from_dict(dict(raw))
    except Exception as error:  # any kind, by the setting that is wrong
        raise CheckpointError(f"config.json is refused by transformers ({reason(error)}): correct it") from error
    return config


def build(kind: type[PreTrainedModel], config: PretrainedConfig, *, weights: bool) -> PreTrainedModel:
    """A model in evaluation: with random weights in float32, or with none.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    try:
        if weights:
            with quiet_transformers():
                return kind(config).float().eval()
        with without_weights():
            return kind(config).float().eval()
    except Exception as error:  # any kind, by the setting that is wrong
        raise CheckpointError(
            f"transformers cannot build {kind.__name__} of config.json ({reason(error)}): correct the setting, or "
            "remove it"
        ) from error


def state_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and of the buffers that are stored, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def parts_of(config: PretrainedConfig) -> Parts:
    """A config and those inside it, by their keys; None is the config itself."""
    inner = {name: getattr(config, name, None) for name in _PARTS}
    return {None: config, **{name: part for name, part in inner.items() if isinstance(part, PretrainedConfig)}}


def example_inputs(kind: type[PreTrainedModel], config: PretrainedConfig, folder: Path) -> tuple[Tensor, ...]:
    """Positional arguments of a forward pass, random: token ids where the class reads text, then images.

    Raises:
        CheckpointError: the preprocessor's config cannot be read, or says no size of an image.
    """
    generator = torch.Generator().manual_seed(0)
    parts = parts_of(config)
    images = parts.get("vision_config", config)
    height, width = _image_size(images, folder)
    channels = int(getattr(images, "num_channels", 3))
    pixels = torch.randn(BATCH, channels, height, width, generator=generator)
    if kind.main_input_name == "pixel_values":
        return (pixels,)
    text = parts["text_config"]
    words = torch.randint(text.vocab_size, (BATCH, min(_WORDS, text.max_position_embeddings)), generator=generator)
    return words, pixels


def _image_size(config: PretrainedConfig, folder: Path) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    if size is None and (folder / PREPROCESSOR).exists():
        told = read_object(regular_file(folder, PREPROCESSOR), unique_keys=False)
        size = next((told[key] for key in _SIZES if told.get(key) and (key != "crop_size" or _crops(told))), None)
    if size is None:
        return USUAL_SIDE, USUAL_SIDE
    if isinstance(size, Mapping):
        size = [size[key] for key in ("height", "width") if key in size] or size.get("shortest_edge")
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    pixels = [side for side in sides if isinstance(side, int) and 0 < side <= _LARGEST_SIDE]
    if len(sides) != 2 or len(pixels) != 2:
        raise CheckpointError(
            f"the size of an image is {size!r} by config.json or {PREPROCESSOR}: give one number of pixels, or two"
        )
    return pixels[0], pixels[1]


def _crops(told: Mapping[str, Any]) -> bool:
    return told.get("do_center_crop") is not False


def quiet_load(kind: type[PreTrainedModel], folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A folder in its stock class in float32 and in evaluation, and what transformers says of its loading."""
    with quiet_transformers():
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    return model.eval(), info
