"""What the page of vision says of measurements, and networks made for it."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from modules.networks import IMAGES, network
from support import ROOT
from torch import nn

from llmfold.modules.activations import watch_layers


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    __import__(request.param)
    return sys.modules[request.param]


@pytest.mark.parametrize("script", ["vision_page"], indirect=True)
@pytest.mark.parametrize(
    ("one", "other", "word"),
    [(0.8, 0.5, "above"), (0.5, 0.8, "below"), (0.5, 0.5, "neither"), (0.1, 0.08, "chance"), (0.1, 0.4, "below")],
)
def test_two_networks_are_ordered_where_their_difference_is_shown(
    script: ModuleType, one: float, other: float, word: str
) -> None:
    drawn = np.random.default_rng(0).random(1500)
    assert script._ordered((drawn < one).astype(float), (drawn[::-1] < other).astype(float))[0] == word


@pytest.mark.parametrize("script", ["vision_cells"], indirect=True)
def test_what_a_network_got_right_is_read_as_it_was_kept(script: ModuleType) -> None:
    right = np.random.default_rng(0).random(1500) < 0.3
    found = {"correct": np.packbits(right).tobytes().hex()}
    assert np.array_equal(script.correct(found), right)
    assert script.accuracy(found) == pytest.approx(right.mean())
    cell = script.Cell("paper", "inverted", 0.25, 2)
    assert script.Cell.parsed(cell.key) == cell


@pytest.mark.parametrize("script", ["vision_drift"], indirect=True)
@pytest.mark.parametrize("means", [True, False])
def test_norms_measured_in_turn_see_unit_variance(script: ModuleType, means: bool) -> None:
    module = network("basic")
    result = script._measured_anew(module, IMAGES, means=means)
    norms = {path: part for path, part in result.named_modules() if isinstance(part, nn.BatchNorm2d)}
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    watch_layers(result, IMAGES, list(norms), lambda path, _, y: seen.update({path: torch.var_mean(y, (0, 2, 3))}))
    for path, norm in norms.items():
        variance, mean = seen[path]
        torch.testing.assert_close(variance, norm.weight.square(), rtol=1e-3, atol=1e-4)
        assert torch.allclose(mean, norm.bias, atol=1e-4) == means
    kept = dict(module.named_buffers())["bn1.running_mean"]
    assert torch.equal(dict(result.named_buffers())["bn1.running_mean"], kept) != means
