"""From images to what a model reads: by the folder's own image processor, and classes by the config's names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, PretrainedConfig

from llmfold.data.labelled import Image, LabelledImages
from llmfold.errors import CheckpointError, UsageError
from llmfold.folder_files import regular_file
from llmfold.images.stock import PREPROCESSOR
from llmfold.jsonfile import read_object
from llmfold.models.refusals import reason
from llmfold.runtime.quiet import quiet_transformers


@dataclass(frozen=True)
class Preprocessing:
    """How images become pixels.

    Attributes:
        words: in a sentence without a full stop.
        pixels: makes (n, channels, height, width) float32 of n images.
        settings: what the image processor was told.
    """

    words: str
    pixels: Callable[[Sequence[Image]], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def batches(self, images: LabelledImages, size: int) -> Iterator[Tensor]:
        """Pixels of all images, ``size`` at a time.

        Raises:
            UsageError: images that make no batch.
        """
        read = images.read()
        while batch := list(islice(read, size)):
            try:
                pixels = self.pixels(batch)
            except Exception as error:  # processors raise what they like
                raise UsageError(f"images of {images.name} cannot be made a batch ({reason(error)})") from error
            yield pixels


def preprocessing(folder: Path) -> Preprocessing:
    """By preprocessor_config.json of a model's folder; pixels in [0, 1] where it has none.

    Raises:
        CheckpointError: transformers cannot build the processor.
    """
    if not (folder / PREPROCESSOR).exists():
        return Preprocessing(f"the model has no {PREPROCESSOR}, so pixels are scaled to 0..1", _scaled)
    told = read_object(regular_file(folder, PREPROCESSOR), unique_keys=False)
    if told.get("auto_map"):
        raise CheckpointError(f"{PREPROCESSOR} asks for code of its own (auto_map), which llmfold does not run")
    try:
        with quiet_transformers():
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise UsageError(f"{PREPROCESSOR} needs the images extra: pip install 'llmfold[images]'") from error
    except Exception as error:  # any kind, by the setting that is wrong
        raise CheckpointError(f"transformers cannot use {PREPROCESSOR} ({reason(error)}): correct it") from error

    def pixels(images: Sequence[Image]) -> Tensor:
        given = processor(list(images), return_tensors="pt", input_data_format="channels_last")
        found: Tensor = given["pixel_values"]
        return found.float()

    return Preprocessing(f"images are prepared by {type(processor).__name__} of {PREPROCESSOR}", pixels, told)


def _scaled(images: Sequence[Image]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        raise ValueError("they differ in size, and no image processor resizes them: add preprocessor_config.json")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def class_numbers(images: LabelledImages, config: PretrainedConfig) -> tuple[NDArray[np.int64] | None, str]:
    """Labels as numbers of a model's classes, and how they were found, in a sentence without a full stop.

    Raises:
        UsageError: classes that the model has not.
    """
    labels, names = images.labels, images.names
    if labels is None:
        return None, "images have no classes"
    if names is None:
        if labels.max() >= config.num_labels:
            raise UsageError(f"{images.name} has class {labels.max()}, and the model has {config.num_labels} of them")
        return labels, "classes are numbers"
    told = {name: number for number, name in (config.id2label or {}).items()} | (config.label2id or {})
    known = {str(name): int(number) for name, number in told.items()}
    used = [names[number] for number in sorted(set(labels.tolist()))]
    unknown = [name for name in used if name not in known]
    if not unknown:
        return np.array([known[names[n]] for n in labels], np.int64), "classes go by their names in config.json"
    if len(unknown) < len(used):
        raise UsageError(
            f"config.json does not name {unknown[0]!r}, a class of {images.name}, but others: add it to label2id"
        )
    if len(names) != config.num_labels:
        raise UsageError(
            f"{images.name} has {len(names)} classes that config.json does not name, and the model has "
            f"{config.num_labels}: name them as label2id does"
        )
    return labels, "none of the classes is named in config.json, so they are taken in their order"
