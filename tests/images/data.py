"""Images of CIFAR's kind for tests: random pixels, classes in turn."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from images.networks import SIDE

CLASSES = 5


def pictures(count: int = 40) -> NDArray[np.uint8]:
    """(count, side, side, 3)"""
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def classes(count: int = 40) -> NDArray[np.int64]:
    """(count,)"""
    return np.random.default_rng(1).integers(0, CLASSES, count)


def archive(path: Path, count: int = 40) -> Path:
    """An .npz of them."""
    np.savez(path, images=pictures(count), labels=classes(count))
    return path


def scaled(images: NDArray[np.uint8]) -> Tensor:
    """What a model without an image processor reads."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
