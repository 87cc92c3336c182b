"""What an image model is measured on: inputs that it implies itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmfold.errors import UsageError
from llmfold.images.config import ImageConfig
from llmfold.images.model import ImageModel
from llmfold.inversion.deep import batch_norms
from llmfold.modules.fold import own_inputs
from llmfold.modules.narrow import with_tensors
from llmfold.runtime.devices import pick_device
from llmfold.runtime.oom import explain_oom

WHOLE_SIDE = 64
"""Pixels up to which images are inverted at their own height and width; above they are halved, but not below this.

Time and memory go with the square. Accuracy of ResNet20 on CIFAR-10, one seed, 25, 45 and 65 % of channels removed:
63.0, 40.3 and 21.4 % by whole images, 62.6, 36.1 and 24.2 by halved ones, 49.1, 20.6 and 13.6 by quartered ones;
another processor gives whole ones 29.7 at 65 %, so that only quartered ones are told apart (docs/modules.md).
"""


def check_measures(model: ImageModel, config: ImageConfig) -> None:
    """Raise UsageError for what the options would measure on, or repair, and the model has not."""
    name = model.kind.__name__
    if config.measures and len(model.inputs) > 1:
        makes = f"makes images to measure on, and {name} reads text too"
        if config.method == "self":
            raise UsageError(f"--method self {makes}: pass --method paper")
        raise UsageError(f"--repair {config.repair} {makes}: leave it out")
    if config.repair in ("variance", "statistics") and not batch_norms(model.module):
        raise UsageError(f"--repair {config.repair} changes BatchNorms, and {name} has none: leave it out")


def repair_of(model: ImageModel, config: ImageConfig) -> str:
    """The repair in force: there is nothing to restore without BatchNorms."""
    if config.method == "self":
        return "its own"
    default = "variance" if config.method == "paper" and batch_norms(model.module) else "none"
    return config.repair or default


def implied_inputs(model: ImageModel, config: ImageConfig, notify: Callable[[str], None]) -> Tensor:
    """(n, channels, height, width) float32 images that the model implies, made on the device of the options.

    Images inverted from BatchNorms are halved, see :data:`WHOLE_SIDE`, where the model takes images of any size.
    """
    device = pick_device(config.device)
    (pixels,) = model.inputs
    if batch_norms(model.module):
        pixels = _smaller(model, pixels)
    with explain_oom():
        module = with_tensors(model.module, {}).eval().to(device)
        return own_inputs(module, (pixels.to(device),), config.seed, notify).cpu()


def data_words(model: ImageModel, config: ImageConfig) -> str:
    """What was looked at beside the weights, for the report."""
    if not config.measures:
        return "none"
    if batch_norms(model.module):
        return "no outside data: images inverted from the model's own running statistics"
    return "no outside data: standard normal images, since the model has no running statistics to invert"


def _smaller(model: ImageModel, pixels: Tensor) -> Tensor:
    height, width = (min(side, max(side // 2, WHOLE_SIDE)) for side in pixels.shape[2:])
    cut = pixels[:, :, :height, :width]
    try:
        with torch.no_grad():
            model.module(cut)
    except (RuntimeError, ValueError):  # a model of one size of image
        return pixels
    return cut
