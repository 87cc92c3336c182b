"""``fold_module``: exact where nothing goes, smaller where something does, and closer the more stays."""

from typing import Any

import pytest
import torch
from modules.networks import IMAGES, NETWORKS, Mixer, network, settled
from torch import nn

import llmfold
from llmfold.errors import UsageError
from llmfold.modules.fold import own_inputs
from llmfold.modules.narrow import tensors_of
from llmfold.modules.reconstruct import reconstructed
from llmfold.modules.trace import couplings_of

INPUTS = (IMAGES[:2],)
METHODS = ("paper", "ifm", "inn", "magnitude-l1", "magnitude-l2")


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("method", ["self", *METHODS])
def test_a_ratio_of_zero_changes_nothing(method: str) -> None:
    module = network("padded")
    folded = llmfold.fold_module(module, INPUTS, 0.0, method=method)
    assert type(folded) is type(module)
    assert folded is not module
    assert torch.equal(folded(IMAGES), module(IMAGES))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fold_meets_the_ratio_and_leaves_the_module_alone(name: str) -> None:
    module = network(name)
    before = {key: tensor.clone() for key, tensor in tensors_of(module).items()}
    ratio = 0.1 if name == "mixer" else 0.3  # most of it is kept
    plan = llmfold.plan_module(module, INPUTS, ratio)
    folded = llmfold.fold_module(module, INPUTS, ratio, inputs=IMAGES)
    assert folded(IMAGES).shape == module(IMAGES).shape
    assert size(folded) == plan.after <= (1 - ratio) * plan.before
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors_of(module).items())


@pytest.mark.parametrize("method", METHODS)
def test_methods_by_weights_give_networks_of_the_planned_size(method: str) -> None:
    module = network("branches")
    plan = llmfold.plan_module(module, INPUTS, 0.5, ratio_of="channels")
    folded = llmfold.fold_module(module, INPUTS, 0.5, ratio_of="channels", method=method)
    assert size(folded) == plan.after
    assert bool(folded(IMAGES).isfinite().all())


def test_parameters_fall_with_the_ratio() -> None:
    module = network("bottleneck")
    sizes = [llmfold.plan_module(module, INPUTS, ratio).after for ratio in (0.0, 0.2, 0.6)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_equal_units_go_without_a_trace_by_the_paper_and_by_least_squares() -> None:
    module = network("basic")
    coupling = next(c for c in couplings_of(module, INPUTS).found if c.name == "layer2.0.conv1")
    twin = torch.arange(coupling.units) // 2
    with torch.no_grad():
        for slot in coupling.of_kind("producer", "norm"):
            tensor = module.state_dict()[slot.tensor]
            tensor.copy_(slot.write(tensor, slot.read(tensor)[twin]))
    widths = {c.name: c.units for c in couplings_of(module, INPUTS).found} | {coupling.name: coupling.units // 2}
    wanted = module(IMAGES)
    # Merging looks at readers as well, so it is the choice of clusters that must find the twins.
    merged = llmfold.fold_module(module, INPUTS, 0.0, widths=widths, method="paper", repair="none")
    fitted = reconstructed(module, couplings_of(module, INPUTS).found, widths, IMAGES)
    assert size(merged) == size(fitted) < size(module)
    assert torch.allclose(fitted(IMAGES), wanted, atol=5e-3)  # but for the ridge
    assert (merged(IMAGES) - wanted).abs().mean() < wanted.abs().mean()


def test_least_squares_is_closer_than_merging_and_closer_the_wider() -> None:
    module = network("basic")
    wanted = module(IMAGES)

    def error(ratio: float, method: str) -> float:
        folded = llmfold.fold_module(module, INPUTS, ratio, ratio_of="channels", method=method, inputs=IMAGES)
        return float((folded(IMAGES) - wanted).detach().square().mean())

    assert error(0.25, "self") < error(0.5, "self")
    assert error(0.25, "self") < error(0.25, "paper")


def test_inputs_of_ones_own_are_of_the_examples_shape_and_repeat() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    example = (torch.zeros(2, 3, 4),)
    one, other = own_inputs(module, example, 0), own_inputs(module, example, 0)
    assert one.shape[1:] == (3, 4)
    assert torch.equal(one, other)
    assert not torch.equal(one, own_inputs(module, example, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "wanda"}, "method must be one of"),
        ({"repair": "magic"}, "repair must be one of"),
        ({"method": "inn", "repair": "variance"}, "merges nothing"),
        ({"method": "self", "repair": "statistics"}, "repairs by itself"),
        ({"ratio": 1.0}, "below 1"),
        ({"ratio": 0.999}, "larger than what the couplings"),
        ({"widths": {"up": 99}, "ratio": 0.1}, "no width 99 for up"),
        ({"ratio_of": "bytes"}, "ratio_of must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        llmfold.fold_module(settled(Mixer()), INPUTS, **options)


def test_a_module_without_free_channels_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="it is an output"):
        llmfold.fold_module(nn.Linear(4, 3), (torch.zeros(2, 4),), 0.3)


class Twice(nn.Module):
    """Its last layer runs twice, or its weight is read without a call."""

    def __init__(self, *, called: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.called = called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        if not self.called:
            return nn.functional.linear(x, self.last.weight, self.last.bias)
        return self.last(x) + self.last(x.square())


def test_a_layer_that_runs_twice_is_narrowed_and_not_refit() -> None:
    torch.manual_seed(0)
    module, x = Twice().eval(), torch.randn(64, 6)
    folded = llmfold.fold_module(module, (x[:2],), 0.3, inputs=x)
    assert size(folded) <= 0.7 * size(module)
    assert isinstance(folded.last, nn.Linear)
    rows = {tuple(row) for row in module.last.weight.T.tolist()}
    assert {tuple(row) for row in folded.last.weight.T.tolist()} < rows


def test_a_weight_that_is_read_without_a_call_is_told() -> None:
    torch.manual_seed(0)
    module, x = Twice(called=False).eval(), torch.randn(64, 6)
    with pytest.raises(UsageError, match="last is never called"):
        llmfold.fold_module(module, (x[:2],), 0.3, inputs=x)
    assert size(llmfold.fold_module(module, (x[:2],), 0.3, method="paper")) < size(module)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "self", "clustering": "ward"}, "clustering=ward is of method=paper"),
        ({"method": "paper", "repair": "statistics"}, "the module has none"),
        ({"method": "paper", "repair": "variance"}, "the module has none"),
    ],
)
def test_options_that_would_change_nothing_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        llmfold.fold_module(Twice(), (torch.randn(2, 6),), 0.3, **options)


class Causal(nn.Module):
    """Convolutions of videos; the first frames are padded before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 12, 3, padding=(0, 1, 1)), nn.Conv3d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(nn.functional.pad(x, (0, 0, 0, 0, 2, 0))).relu())
        return result


def test_frames_that_are_padded_are_no_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 6, 6)
    folded = llmfold.fold_module(Causal().eval(), (x,), 0.3, method="magnitude-l2")
    assert type(folded) is Causal
    assert folded(x).shape == (2, 4, 5, 6, 6)
