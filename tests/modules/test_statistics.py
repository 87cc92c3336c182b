"""Statistics of BatchNorms: Fold-AR's factor, the normalised form, and what is matched."""

import math

import pytest
import torch
from modules.networks import IMAGES, network
from torch import Tensor, nn

from llmfold.folding.grouping import Groups
from llmfold.modules.narrow import tensors_of, with_tensors
from llmfold.modules.statistics import matched, moments, normalised, pooled, reset_statistics, with_restored_variance
from llmfold.modules.trace import couplings_of

INPUTS = (IMAGES[:2],)


def pair(rows: Tensor) -> nn.Sequential:
    """A convolution with given rows, a BatchNorm whose statistics are those of white inputs, and a reader of zeros."""
    conv, norm, last = nn.Conv2d(3, len(rows), 1, bias=False), nn.BatchNorm2d(len(rows)), nn.Conv2d(len(rows), 2, 1)
    with torch.no_grad():
        conv.weight.copy_(rows[:, :, None, None])
        norm.weight.zero_()
        last.weight.zero_()
    assert isinstance(norm.running_var, Tensor)
    norm.running_var.copy_(rows.square().sum(1))
    return nn.Sequential(conv, norm, nn.ReLU(), last).eval()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_gains_of_a_merged_pair_follow_the_formula(correlation: float) -> None:
    rows = torch.tensor([[1.0, 0, 0], [correlation, math.sqrt(1 - correlation**2), 0], [0, 0, 1]])
    module = pair(rows)
    found = couplings_of(module, INPUTS)
    coupling, tensors = found.found[0], normalised(module, found, tensors_of(module))
    result, _ = with_restored_variance(tensors, (coupling,), (Groups(torch.tensor([0, 0, 1])),))
    zero = torch.tensor([0.0, 0.0])
    assert torch.equal(result["1.weight"], zero)  # the mean of gains of zero, however much they grow
    tensors["1.weight"] = torch.tensor([1.0, 3.0, 5.0])
    # Gains are rows that are compared, too: (1, 1) and (c, √, 3) have this cosine.
    cosine = (correlation + 3) / math.sqrt(2 * 10)
    result, _ = with_restored_variance(tensors, (coupling,), (Groups(torch.tensor([0, 0, 1])),))
    n = 2
    assert float(result["1.weight"][0]) == pytest.approx(2 * n / math.sqrt(n + (n * n - n) * cosine), rel=1e-5)
    assert float(result["1.weight"][1]) == 5.0


@pytest.mark.parametrize("name", ["basic", "vgg", "bottleneck"])
def test_the_normalised_form_computes_the_same_with_variances_of_one(name: str) -> None:
    module = network(name)
    found = couplings_of(module, INPUTS)
    tensors = normalised(module, found, tensors_of(module))
    assert found.norms
    variances = [tensor for key, tensor in tensors.items() if key.endswith("running_var")]
    assert all(torch.allclose(v + 1e-5, torch.ones(())) for v in variances)
    assert torch.allclose(with_tensors(module, tensors)(IMAGES), module(IMAGES), atol=1e-4)


def test_what_is_wrong_with_the_inputs_cancels_where_nothing_was_folded() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(5, generator=generator), torch.rand(5, generator=generator)
    running = torch.randn(5, generator=generator), torch.rand(5, generator=generator) + 0.1
    mean, variance = matched(seen, seen, running)
    assert torch.allclose(mean, running[0])
    assert torch.allclose(variance, running[1])


def test_matched_statistics_keep_mean_and_variance_of_normalised_values() -> None:
    generator = torch.Generator().manual_seed(1)
    dense, folded = torch.randn(500, 3, generator=generator) * 2 + 1, torch.randn(500, 3, generator=generator) * 0.3
    running = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([4.0, 3.0, 5.0])
    mean, variance = matched(moments(dense), moments(folded), running)
    before = moments((dense - running[0]) / running[1].sqrt())
    after = moments((folded - mean) / variance.sqrt())
    assert torch.allclose(after[0], before[0], atol=1e-3)
    assert torch.allclose(after[1], before[1], atol=1e-3)


def test_pooled_moments_are_those_of_all() -> None:
    x = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(2))
    parts = [(len(part), *moments(part)) for part in (x[:7], x[7:])]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(pooled(parts), moments(x), strict=True))


def test_statistics_measured_anew_are_those_of_the_inputs() -> None:
    module = network("basic")
    reset_statistics(module, IMAGES)
    norm, conv = module.get_submodule("bn1"), module.get_submodule("conv1")
    with torch.no_grad():
        y = conv(IMAGES)
    assert torch.allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, y.var((0, 2, 3)), rtol=1e-4)
    assert not module.training


def test_an_input_that_is_left_over_does_not_weigh_like_a_batch() -> None:
    norm = torch.nn.BatchNorm1d(3)
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    reset_statistics(norm, inputs, batch=8)
    means = torch.stack([part.mean(0) for part in (inputs[:5], inputs[5:])]).mean(0)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, means, atol=1e-6)
