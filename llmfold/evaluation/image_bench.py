"""Measuring image models against one dense model: the same images, prepared alike, in float32."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmfold.checkpoint import Checkpoint
from llmfold.data.labelled import LabelledImages, read_images
from llmfold.environment import versions
from llmfold.errors import CheckpointError, LlmfoldError, UsageError
from llmfold.evaluation.image_scores import Closeness, ImageScores, closeness, scores
from llmfold.images.kind import CLASSIFIER, image_class
from llmfold.images.pixels import Preprocessing, class_numbers, preprocessing
from llmfold.images.program import PROGRAM_FILE, load_program
from llmfold.images.stock import parts_of, quiet_load, read_config, stock_class
from llmfold.inversion.deep import float_tensors
from llmfold.models.refusals import reason, reported
from llmfold.modules.operations import multiplications

_DECIDING = ("llmfold", "torch", "transformers", "pillow")


class ImageBench:
    """Images, what the dense model gives on them, and any number of models beside it.

    Attributes:
        classes: whether models score classes, rather than embed images.
        protocol: how models are measured, a sentence each.
    """

    def __init__(
        self,
        dense: Path,
        images: str,
        *,
        column: str | None,
        limit: int | None,
        device: torch.device,
        batch: int,
        program: bool = False,
    ) -> None:
        """Read the images once.

        Args:
            dense: folder of the dense model, whose processor prepares them.
            images: as of :func:`llmfold.data.labelled.read_images`.
            column: of the classes, where they are a table.
            limit: of images.
            device: where models run.
            batch: images in one forward pass.
            program: whether a program of ``torch.export`` in the dense model's folder may be loaded.

        Raises:
            UsageError: images that cannot be read, or are not for this model.
            CheckpointError: the model is none for images.
        """
        raw = Checkpoint.open(dense).config
        name = image_class(raw)
        if name is None:
            raise UsageError(f"{dense.name} is no image model: it is what others are compared with, so pass one")
        config = read_config(stock_class(name, raw), raw)
        channels = int(getattr(parts_of(config).get("vision_config", config), "num_channels", 3))
        self._dense, self._program, self._device, self._batch = dense, program, device, batch
        self.classes = name.endswith(CLASSIFIER)
        self.prepare: Preprocessing = preprocessing(dense)
        self.images: LabelledImages = read_images(images, channels, limit=limit, column=column)
        numbers, words = class_numbers(self.images, config) if self.classes else (None, "the model has no classes")
        self._labels = None if numbers is None else torch.from_numpy(numbers)
        self.protocol = [
            f"{self.images.count:,} images of {self.images.name} (SHA-256 {self.images.sha256[:16]}), float32; "
            "± is half of a 95 % interval, by the normal distribution",
            self.prepare.words,
            words,
            "multiplications are of matrix products, convolutions and attention, for one image",
        ]

    @property
    def key(self) -> list[Any]:
        """Everything beside the models that decides the numbers, as JSON has it."""
        packages = versions("pillow")
        place = [self.protocol, self.images.sha256, dict(self.prepare.settings), str(self._device)]
        return [*place, [packages[name] for name in _DECIDING]]

    @cached_property
    def _reference(self) -> "Given":
        return self._run(self._dense, program=self._program)

    @property
    def dense(self) -> ImageScores:
        """Scores of the dense model."""
        return self._scores(self._reference)

    def measure(self, folder: Path, *, program: bool) -> tuple[ImageScores, Closeness]:
        """Measure a model beside the dense one.

        Args:
            folder: of the model.
            program: whether a program of ``torch.export`` in it may be loaded.

        Raises:
            CheckpointError: it cannot be loaded, or run on these images.
            UsageError: it carries a program, and that may not be loaded.
        """
        given = self._run(folder, program=program)
        close = closeness(self._reference.vectors, given.vectors, self._labels, classes=self.classes)
        return self._scores(given), close

    def _scores(self, given: "Given") -> ImageScores:
        return scores(given.vectors, self._labels, given.parameters, given.multiplications)

    def _run(self, folder: Path, *, program: bool) -> "Given":
        model = load_image_model(folder, self._device, program=program)
        given = Given(model.parameters)
        with torch.inference_mode():
            for pixels in self.prepare.batches(self.images, self._batch):
                try:
                    if not given.parts:
                        given.multiplications = multiplications(model.vectors, pixels[:1].to(model.device))
                    given.parts.append(model.vectors(pixels.to(model.device)).float().cpu())
                except LlmfoldError:
                    raise
                except (RuntimeError, ValueError, AssertionError) as error:  # the last: a program of one size
                    size = "x".join(map(str, pixels.shape[1:]))
                    raise CheckpointError(f"{folder.name} cannot run on images of {size} ({reason(error)})") from error
        if not all(bool(part.isfinite().all()) for part in given.parts):
            raise CheckpointError(f"{folder.name} computes NaN or infinity: it is damaged")
        return given


@dataclass
class Given:
    """What a model gives, batch by batch."""

    parameters: int
    multiplications: int = 0
    parts: list[Tensor] = field(default_factory=list)

    @cached_property
    def vectors(self) -> Tensor:
        """(n, width) float32."""
        return torch.cat(self.parts)


@dataclass(frozen=True, eq=False)
class Runnable:
    """A model that is loaded: its module, device and number of parameters."""

    module: nn.Module
    device: torch.device
    parameters: int

    def vectors(self, pixels: Tensor) -> Tensor:
        """(n, width) scores of classes, or embeddings: the first of its outputs that is one vector an image."""
        features: Any = getattr(self.module, "get_image_features", None)
        given = features(pixel_values=pixels) if features else self.module(pixels)
        found = next((x for x in float_tensors(given) if x.ndim > 1 and x[0].numel() == x.shape[1]), None)
        if found is None:
            raise CheckpointError("the model gives no vector for an image, so there is nothing to compare")
        return found.flatten(1)


def load_image_model(folder: Path, device: torch.device, *, program: bool) -> Runnable:
    """Load a folder in its stock class in float32, or the program that it carries in place of one.

    Args:
        folder: of the model.
        device: where it runs; a program runs on the CPU.
        program: whether a program may be loaded: unlike safetensors it is code.

    Raises:
        CheckpointError: it is no image model, or cannot be loaded.
        UsageError: it carries a program, and that may not be loaded.
    """
    checkpoint = Checkpoint.open(folder)
    name = image_class(checkpoint.config)
    if name is None:
        raise CheckpointError(f"{folder.name} is no image model by its config.json")
    if (folder / PROGRAM_FILE).exists():
        if not program:
            raise UsageError(f"{folder.name} carries a program, {PROGRAM_FILE}: pass --trust-remote-code to run it")
        if name == "CLIPModel":
            raise UsageError(f"the {PROGRAM_FILE} of {folder.name} reads text too: evaluate a fold of its vision tower")
        module = load_program(folder / PROGRAM_FILE)
        return Runnable(module, torch.device("cpu"), sum(each.numel() for each in module.parameters()))
    try:
        model, info = quiet_load(stock_class(name, checkpoint.config), folder)
    except LlmfoldError:
        raise
    except Exception as error:  # transformers raises many kinds for a model that it cannot load
        raise CheckpointError(f"transformers cannot load {folder.name} ({reason(error)})") from error
    complaint = reported(info)
    if complaint:
        raise CheckpointError(f"{folder.name}: {complaint}")
    return Runnable(model.to(device), device, sum(each.numel() for each in model.parameters()))
