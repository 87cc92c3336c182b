"""Multiplications are those that one counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmfold.modules.operations import multiplications


@pytest.mark.parametrize(
    ("module", "shape", "wanted"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 8, 8), 3 * 4 * 9 * 64),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), (1, 4, 8, 8), 4 * 9 * 16),
        (nn.Linear(6, 5), (1, 6), 30),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)), (1, 3, 2, 2), 24 + 24),
    ],
)
def test_layers(module: nn.Module, shape: tuple[int, ...], wanted: int) -> None:
    assert multiplications(module.eval(), torch.zeros(shape)) == wanted


def test_fused_attention_counts_as_its_two_products() -> None:
    heads, tokens, width = 2, 5, 8
    x = torch.randn(1, heads, tokens, width)
    assert multiplications(F.scaled_dot_product_attention, x, x, x) == 2 * heads * tokens**2 * width


def test_a_program_counts_as_its_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.zeros(1, 3, 8, 8)
    assert multiplications(torch.export.export(module, (x,)).module(), x) == multiplications(module, x)
