"""Refinement of a narrowed MLP: what it lowers, what it leaves alone, and that it repeats."""

from collections.abc import Iterator

import pytest
import torch
from support import tiny_model
from torch import Tensor

from llmfold.checkpoint import Source
from llmfold.methods.dense import DenseStates, Measurement, NeuronInputs
from llmfold.models.context import Context
from llmfold.pipeline.opening import open_source
from llmfold.repair import refine as module
from llmfold.repair.refine import Mlp, Refinement, held_error, refine

CHUNKS = [slice(start, start + 8) for start in range(0, 48, 8)]
TRAIN, HELD = CHUNKS[:5], CHUNKS[5:]
KEPT = torch.arange(36)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "biased"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NeuronInputs:
    """The MLP of layer 1 of a tiny model with the states around it, on random residual vectors."""
    folder = tmp_path_factory.mktemp("refine")
    checkpoint, shape = open_source(Source(tiny_model(folder / "m", mlp_bias=request.param), "m", None))

    def start() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(8, 64, shape.hidden, generator=generator) for _ in CHUNKS)

    context = Context(shape)
    measurement = Measurement(context, start, (48, 64), folder / "work", torch.device("cpu"))

    def read_layer(index: int) -> dict[str, Tensor]:
        from llmfold.models import tensor_name

        return {role: checkpoint.read(tensor_name(index, role)) for role, _ in shape.layer_roles(shape.layers[index])}

    states = DenseStates(measurement)
    states.move_to([1], read_layer)
    (coupling,) = shape.couplings(shape.layers[1]).neurons
    return states.around(1, measurement.wide(read_layer(1))).neurons_of(coupling)


def narrowed(inputs: NeuronInputs) -> Mlp:
    weights = inputs.weights
    rows = {role: weights[role][KEPT] for role in ("gate", "up", "gate_bias", "up_bias") if role in weights}
    down = {"down_bias": weights["down_bias"]} if "down_bias" in weights else {}
    return {**rows, "down": weights["down"][:, KEPT].contiguous(), **down}


def test_steps_lower_the_error_on_rows_that_they_have_not_seen(inputs: NeuronInputs) -> None:
    start = narrowed(inputs)
    found, trace = refine(start, inputs, TRAIN, HELD, Refinement(steps=100, batch=128, rate=2e-2), 0)
    assert trace[1] < 0.8 * trace[0]
    assert trace == pytest.approx([held_error(start, inputs, HELD), held_error(found, inputs, HELD)])
    assert {role: tensor.shape for role, tensor in found.items()} == {role: t.shape for role, t in start.items()}


def test_steps_lower_the_error_in_the_metric_that_is_asked_for(inputs: NeuronInputs) -> None:
    """Where only a few outputs count, those come out better than by steps that count all of them."""
    metric = torch.eye(inputs.layer.measurement.shape.hidden)[:, :4]
    few = Refinement(steps=100, batch=128, rate=2e-2, metric=metric)
    start = narrowed(inputs)
    _, trace = refine(start, inputs, TRAIN, HELD, few, 0)
    everything, _ = refine(start, inputs, TRAIN, HELD, Refinement(steps=100, batch=128, rate=2e-2), 0)
    assert trace[1] < 0.9 * held_error(everything, inputs, HELD, few)
    assert trace[1] < 0.5 * trace[0]


def test_half_of_the_way_is_taken_where_all_of_it_goes_too_far(
    inputs: NeuronInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of Adam moves each number by its rate: twice of what is right, then half of that is."""
    start, errors = narrowed(inputs), {}
    for ways in ((1.0,), (0.5,), (1.0, 0.5)):
        monkeypatch.setattr(module, "_WAYS", ways)
        for rate in (1e-3, 2.0):
            found, trace = refine(start, inputs, TRAIN, HELD, Refinement(steps=1, batch=128, rate=rate), 0)
            assert trace == pytest.approx([held_error(start, inputs, HELD), held_error(found, inputs, HELD)])
            errors[ways, rate] = trace[1]
    for rate, better in ((1e-3, 1.0), (2.0, 0.5)):
        assert errors[(1.0, 0.5), rate] == errors[(better,), rate] < errors[(1.5 - better,), rate]


def test_the_dense_mlp_has_no_error(inputs: NeuronInputs) -> None:
    assert {role.partition("_")[0] for role in inputs.weights} == {"gate", "up", "down"}
    assert held_error(inputs.weights, inputs, HELD) < 1e-9


def test_the_same_seed_gives_the_same_bits(inputs: NeuronInputs) -> None:
    once, again, other = (
        refine(narrowed(inputs), inputs, TRAIN, HELD, Refinement(steps=5, batch=64), seed)[0] for seed in (0, 0, 1)
    )
    assert all(torch.equal(once[role], again[role]) for role in once)
    assert not torch.equal(once["gate"], other["gate"])
