"""Deep Inversion: statistics come closer, classes are met, the module stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfold.errors import UsageError
from llmfold.inversion import InversionOptions, inverted_inputs
from llmfold.inversion.deep import _distances

OPTIONS = InversionOptions(count=20, steps=150)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    module = nn.Sequential(*layers)
    assert isinstance(layers[1].running_mean, Tensor)
    assert isinstance(layers[1].running_var, Tensor)
    layers[1].running_mean.copy_(torch.linspace(-1, 1, 8))
    layers[1].running_var.copy_(torch.linspace(0.2, 2, 8))
    return module.train()


def distance(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), _distances(module.eval()) as found:
        module(x)
    return float(torch.stack(found).sum())


def test_statistics_and_classes_come_closer_and_nothing_else_changes() -> None:
    module = classifier()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = inverted_inputs(module, (3, 8, 8), OPTIONS, seed=1)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    start = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert distance(module, x) < 0.5 * distance(module, start)
    classes = torch.arange(20) % 4
    assert F.cross_entropy(module(x), classes) < F.cross_entropy(module(start), classes)


def test_a_seed_gives_its_images_again() -> None:
    module = classifier()
    short = InversionOptions(count=4, steps=3)
    one, same, other = (inverted_inputs(module, (3, 8, 8), short, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_without_a_batchnorm_nothing_tells_what_inputs_are() -> None:
    with pytest.raises(UsageError, match="no BatchNorm"):
        inverted_inputs(nn.Linear(3, 2), (3,))
