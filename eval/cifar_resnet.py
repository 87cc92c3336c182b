"""ResNets for CIFAR-10 (He et al. 2016, option-A shortcuts) by the names of a stored state dict, and test images."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pad(nn.Module):
    """Option A: every second pixel, with channels of zeros before and after."""

    def __init__(self, missing: int) -> None:
        """Widen by so many channels."""
        super().__init__()
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c + missing, h / 2, w / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Give ``outputs`` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else Pad(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """6 n + 2 layers of 16, 32 and 64 channels."""

    def __init__(self, blocks: int) -> None:
        """``blocks`` (n) in each of three stages."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 32, 64)
        for number, (width, before) in enumerate(zip(widths, (16, *widths), strict=False), start=1):
            first = Block(before, width, 1 if number == 1 else 2)
            self.add_module(
                f"layer{number}", nn.Sequential(first, *(Block(width, width, 1) for _ in range(blocks - 1)))
            )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (n, 10) of images (n, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.get_submodule("layer3")(self.get_submodule("layer2")(self.get_submodule("layer1")(x)))
        return self.linear(x.mean((2, 3)))


def load(path: Path) -> CifarResNet:
    """The network of a safetensors file, in evaluation."""
    stored = load_file(path)
    blocks = 1 + max(int(name.split(".")[1]) for name in stored if name.startswith("layer1."))
    network = CifarResNet(blocks)
    network.load_state_dict(stored)
    return network.eval()


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Normalised images (n, 3, 32, 32) float32 and classes (n,) of an npz file with x (n, 32, 32, 3) uint8 and y."""
    with np.load(path) as stored:
        x, y = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((x / 255 - mean) / std).permute(0, 3, 1, 2).contiguous(), y.long()
