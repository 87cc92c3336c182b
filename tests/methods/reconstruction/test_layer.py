"""What a layer's units are worth, and what judges it, against sums over rows written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stock_models import some_tokens, tiny_stock
from support import fold, tiny_model
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement
from llmfold.methods.reconstruction import layer as module
from llmfold.methods.reconstruction.fold import _resampled
from llmfold.methods.reconstruction.held import split
from llmfold.methods.reconstruction.layer import SELECTION_RIDGE, LayerReconstruction, ReconstructionOptions
from llmfold.methods.reconstruction.refitting import Refitted, refit_consumer
from llmfold.models import Role
from llmfold.models.context import Context
from llmfold.models.coupling import HeadCoupling
from llmfold.models.slots import narrowed
from llmfold.planning.sensitivity import PARTS, Part
from llmfold.runtime.hidden_states import chunks

SIZE = (24, 10)
CONFIG = FoldConfig("m", method="self", mlp_ratio=0.5)
Around = Callable[..., tuple[LayerInputs, dict[Role, Tensor]]]


class Importance:
    """Stands in for what passes back through the model would say."""

    def __init__(self, hidden: int) -> None:
        self.map = torch.randn(hidden, hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def metric(self, index: int, part: str) -> Tensor:
        return self.map


@pytest.fixture
def around(tmp_path: Path) -> Around:
    """States around layer 1 of a tiny stock model whose tensors a function may change before."""

    def built(family: str, change: Callable[[dict[Role, Tensor]], None] = lambda _: None) -> Any:
        tiny = tiny_stock(family)
        embedded, context = tiny.shape.stock.embed(tiny.outside, some_tokens(*SIZE)), Context(tiny.shape)
        first = lambda: (embedded[part] for part in chunks(SIZE[0]))  # noqa: E731
        states = DenseStates(Measurement(context, first, SIZE, tmp_path, torch.device("cpu")))
        tensors = {index: dict(tiny.layer(index)) for index in range(2)}
        change(tensors[1])
        with torch.no_grad():
            states.move_to([1], tensors.__getitem__)
        return states.around(1, tensors[1]), tensors[1]

    return built


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@torch.no_grad()
def test_prices_are_nats_over_all_tokens_also_of_experts_that_see_some(around: Around, family: str) -> None:
    inputs, _ = around(family)
    importance = Importance(inputs.before.shape[-1])
    layer = LayerReconstruction(CONFIG, ReconstructionOptions(importance=importance), inputs)  # type: ignore[arg-type]
    after = torch.from_numpy(inputs.after[:].copy()).flatten(0, 1)
    mean = float((1 / (after.square().mean(-1) + 1e-6)).mean())
    enough = [each for each in layer.couplings.neurons if not inputs.neurons_of(each).scarce]
    assert enough
    for coupling in enough:
        neurons = inputs.neurons_of(coupling)
        x, _, w = neurons.mlp(slice(0, SIZE[0]))
        features, rows = neurons.neurons(x).double(), neurons.weights[coupling.reader].T.double() @ importance.map
        gram = (features * w[:, None]).T @ features
        inverse = torch.linalg.inv(gram + SELECTION_RIDGE * gram.diagonal().mean() * torch.eye(len(gram)))
        nats = rows.square().sum(1) / inverse.diagonal() / (2 * mean)
        order = layer.neuron_order(coupling, coupling.units - 1)
        assert int(order.removed[0]) == int(nats.argmin())
        assert float(order.costs[0]) == pytest.approx(float(nats.min()), rel=1e-3)


@torch.no_grad()
def test_a_neuron_that_is_constant_is_free_where_the_consumer_has_a_bias(around: Around) -> None:
    chosen = 5

    def constant(tensors: dict[Role, Tensor]) -> None:
        (producer,) = (role for role in tensors if role.endswith("c_fc.weight"))
        tensors[producer][:, chosen] = 0
        tensors[producer.replace("weight", "bias")][chosen] = 3.0  # float32 sums cancel to 1e-7 of its square

    inputs, _ = around("gpt2", constant)
    layer = LayerReconstruction(CONFIG, ReconstructionOptions(), inputs)
    (coupling,) = layer.couplings.neurons
    assert int(layer.neuron_order(coupling, coupling.units - 1).removed[0]) == chosen


@torch.no_grad()
def test_a_layer_that_is_judged_is_not_fitted_to_the_rows_that_judge(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Refitted] = []
    monkeypatch.setattr(module, "refit_consumer", lambda *given: found.append(refit_consumer(*given)) or found[-1])
    inputs, _ = around("llama")
    layer = LayerReconstruction(CONFIG, ReconstructionOptions(), inputs)
    tensors = layer.silenced(inputs.shape.with_units(inputs.shape.intermediate // 2, 1))
    for coupling, refitted in zip((layer.couplings.heads, *layer.couplings.neurons), found, strict=True):
        consumer = tensors[coupling.slots[coupling.reader].tensor]
        read = consumer[:, consumer.ne(0).any(0)]
        assert torch.equal(read, refitted.train[coupling.reader])
        assert not torch.equal(read, refitted.whole[coupling.reader])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", ["llama", "phi3", "cohere", "gemma2", "mixtral"])
@torch.no_grad()
def test_a_silenced_layer_is_as_wide_and_reads_nothing_of_the_units_that_go(
    around: Around, family: str, part: Part
) -> None:
    inputs, _ = around(family)
    layer, widths = LayerReconstruction(CONFIG, ReconstructionOptions(), inputs), inputs.shape
    fewer = (widths.intermediate, 1) if part == "heads" else (widths.intermediate // 2, widths.head_units)
    silenced = layer.silenced(after := widths.with_units(*fewer))
    shapes = {role: tuple(tensor.shape) for role, tensor in inputs.weights.items()}
    assert {role: tuple(tensor.shape) for role, tensor in silenced.items()} == shapes
    changed = []
    for coupling in (layer.couplings.heads,) if part == "heads" else layer.couplings.neurons:
        if isinstance(coupling, HeadCoupling):
            gone, units = layer.head_order(1).removed, widths.head_units
        else:
            gone, units = layer.neuron_order(coupling, coupling.units // 2).removed, coupling.units
        values = coupling.view(silenced, widths)
        spoilt = {role: values[role].unflatten(0, (units, -1)).clone() for role in coupling.producers}
        for tensor in spoilt.values():
            tensor[gone] = 7.0
        changed.append((coupling.slots, {role: tensor.flatten(0, 1) for role, tensor in spoilt.items()}))
    spoiled = narrowed(silenced, changed, shapes, widths)
    run, x = inputs.measurement.context.layer, inputs.attended(slice(0, 4))
    assert after != widths
    assert not torch.allclose(run(x, silenced, 1), run(x, inputs.weights, 1), atol=1e-3)
    torch.testing.assert_close(run(x, silenced, 1), run(x, spoiled, 1), atol=1e-4, rtol=1e-4)


def test_few_sequences_are_held_back_and_refined_on_too(tmp_path: Path) -> None:
    assert split(8) == ([slice(0, 7)], [slice(7, 8)])
    few: dict[str, Any] = {"num_samples": 8, "sequence_length": 32, "refine": 20}
    report = fold(tiny_model(tmp_path / "m"), method="self", mlp_ratio=0.5, output=tmp_path / "out", **few)
    assert all(len(layer["mlp"]["refined_errors"]) == 2 for layer in report.layers)


@pytest.mark.parametrize(
    ("scale", "expected"), [(1, [0, 1, 4, 9, 16]), (0.5, [0, 4, 16]), (2, [0, 0, 1, 4, 4, 4, 9, 16, 16])]
)
def test_a_curve_in_units_of_another_width_ends_where_it_did(scale: float, expected: list[float]) -> None:
    curve = torch.tensor([0.0, 1, 4, 9, 16])
    assert _resampled(curve, scale).tolist() == expected
