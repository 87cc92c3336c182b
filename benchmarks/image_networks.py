"""Image classifiers at the sizes of the literature, with random weights: what is measured does not depend on them."""

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

CLASSES = 1000
_VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class Vgg11Bn(nn.Module):
    """VGG11 with BatchNorm, with modules named and laid out as torchvision's ``vgg11_bn``."""

    def __init__(self, hidden: int = 4096) -> None:
        """``hidden`` neurons in each of the two layers before the last."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item in _VGG11:
            if isinstance(item, int):
                layers += [nn.Conv2d(channels, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
                channels = item
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(channels * 49, hidden), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(hidden, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (n, 1000) of images (n, 3, height, width)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def resnet18(**changes: object) -> nn.Module:
    """ResNet18 of transformers; ``changes`` go to its config."""
    config = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**{**config, "num_labels": CLASSES, **changes}))


def resnet50(**changes: object) -> nn.Module:
    """ResNet50 of transformers; ``changes`` go to its config."""
    return ResNetForImageClassification(ResNetConfig(**{"num_labels": CLASSES, **changes}))


NETWORKS = {"ResNet18": resnet18, "ResNet50": resnet50, "VGG11-BN": Vgg11Bn}


def network(name: str, seed: int = 0) -> nn.Module:
    """One of them, in evaluation."""
    torch.manual_seed(seed)
    return NETWORKS[name]().eval()
