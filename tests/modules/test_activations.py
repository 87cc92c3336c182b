"""Rows of layers: what a layer multiplies by its weight gives what it gives."""

import torch
from torch import nn

from llmfold.modules.activations import Rows, channels_second


def test_rows_of_inputs_times_weights_are_rows_of_outputs() -> None:
    x = torch.randn(3, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    for layer in (nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.Conv2d(4, 5, (3, 1), dilation=2, bias=True)):
        rows = Rows(5)
        made = rows.inputs(layer, x) @ layer.weight.flatten(1).T + layer.bias
        assert torch.allclose(made, rows.outputs(layer(x)), atol=1e-5)
    linear, tokens = nn.Linear(6, 2), torch.randn(3, 11, 6)
    made = Rows(4).inputs(linear, tokens) @ linear.weight.T + linear.bias
    assert torch.allclose(made, Rows(4).outputs(channels_second(linear, linear(tokens))), atol=1e-6)
    assert Rows.of(128, 1024, 8192).step == 17
    assert Rows.of(4, 10, 8192).step == 1
