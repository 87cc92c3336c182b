"""States of the dense model around its layers: what transformers computes, wherever they are moved to."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from stock_models import some_tokens, tiny_stock
from support import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Source
from llmfold.methods.base import ReadLayer
from llmfold.methods.dense import DenseStates, ExpertInputs, Measurement, row_weight
from llmfold.models import Role, tensor_name
from llmfold.models.context import Context
from llmfold.pipeline.opening import open_source
from llmfold.runtime.hidden_states import STATE_FOLDER, chunks

LAYERS, SIZE = 4, (20, 12)
TOKENS = torch.randint(0, 64, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("dense") / "m", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def hidden(model: Path) -> list[Tensor]:
    """States before every layer by transformers; those after the last come without the final norm."""
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    after: list[Tensor] = []
    for layer in stock.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: after.append(out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode():
        first = stock.model.embed_tokens(TOKENS)
        stock(TOKENS)
    return [first, *after]


Prepared = tuple[Measurement, ReadLayer]


@pytest.fixture
def prepare(model: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def prepared(*, population: bool = False) -> Prepared:
        checkpoint, shape = open_source(Source(model, "m", None))
        context, device = Context(shape), torch.device("cpu")

        def read_layer(index: int) -> dict[Role, Tensor]:
            roles = shape.layer_roles(shape.layers[index])
            return {role: checkpoint.read(tensor_name(index, role)) for role, _ in roles}

        seed = 0 if population else None
        start = partial(context.embed, checkpoint, TOKENS, device)
        return Measurement(context, start, SIZE, tmp_path, device, shuffle_seed=seed), read_layer

    return prepared


def files(measurement: Measurement) -> set[str]:
    return {path.stem for path in (measurement.work / STATE_FOLDER).iterdir()}


@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[1], [3]], [[2], [0]]])
def test_states_are_those_of_transformers(
    prepare: Callable[..., Prepared], hidden: list[Tensor], groups: list[list[int]]
) -> None:
    measurement, read_layer = prepare()
    states = DenseStates(measurement)
    for group in groups:
        states.move_to(group, read_layer)
        for index in group:
            around = states.around(index, measurement.wide(read_layer(index)))
            for found, expected in ((around.before, hidden[index]), (around.after, hidden[index + 1])):
                torch.testing.assert_close(torch.from_numpy(found[:]), expected, rtol=1e-4, atol=1e-4)


def test_the_first_sequences_alone_have_the_states_that_they_have_among_all(prepare: Callable[..., Prepared]) -> None:
    measurement, read_layer = prepare()
    few, found = measurement.first(8), []
    for each in (few, measurement):
        states = DenseStates(each)
        states.move_to([0, 1], read_layer)
        around = states.around(1, each.wide(read_layer(1)))
        found.append([torch.from_numpy(part[:8].copy()) for part in (around.before, around.inside, around.after)])
        assert len(around.after) == each.size[0]
        states.close()
    assert few.rows == 8 * SIZE[1] < measurement.rows
    torch.testing.assert_close(*found)


def test_only_states_around_the_group_stay_on_disk(prepare: Callable[..., Prepared]) -> None:
    measurement, read_layer = prepare()
    states = DenseStates(measurement)
    states.move_to([1, 2], read_layer)
    assert files(measurement) == {"00001", "00001-inside", "00002", "00002-inside", "00003"}
    states.close()
    assert files(measurement) == set()


@pytest.mark.parametrize("population", [False, True])
def test_a_layer_gives_its_mlps_inputs_and_outputs(prepare: Callable[..., Prepared], population: bool) -> None:
    measurement, read_layer = prepare(population=population)
    states = DenseStates(measurement)
    states.move_to([1], read_layer)
    around = states.around(1, measurement.wide(read_layer(1)))
    (coupling,) = measurement.shape.couplings(around.shape).neurons
    mlp = around.neurons_of(coupling)
    part = slice(4, 9)
    x, y, w = mlp.mlp(part)
    torch.testing.assert_close(mlp.neurons(x) @ around.weights["down"].T, y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mlp.mlp_output(x, mlp.weights), y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(w, row_weight(torch.from_numpy(around.after[part].copy())))
    rows = torch.arange(part.start * SIZE[1], part.stop * SIZE[1]).numpy()
    for one, other in zip(mlp.mlp_rows(rows), (x, y, w), strict=True):
        assert torch.equal(one, other)
    heads, _ = around.heads(part)
    after = torch.from_numpy(around.after[part].copy()).flatten(0, 1)
    added = (after - y - heads @ around.weights["o"].T).numpy()
    if population:
        assert around.order is not None
        expected = around.before.reshape(-1, measurement.shape.hidden)[around.order[rows]]
    else:
        expected = around.before[part].reshape(-1, measurement.shape.hidden)
    torch.testing.assert_close(torch.from_numpy(added), torch.from_numpy(expected.copy()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
def test_what_experts_give_on_tokens_routed_to_them_is_what_the_model_adds(family: str, tmp_path: Path) -> None:
    tiny, size = tiny_stock(family), (12, 10)
    embedded, context = tiny.shape.stock.embed(tiny.outside, some_tokens(*size)), Context(tiny.shape)
    measurement = Measurement(
        context, lambda: (embedded[part] for part in chunks(12)), size, tmp_path, torch.device("cpu")
    )
    states = DenseStates(measurement)
    with torch.no_grad():
        states.move_to([1], tiny.layer)
        around, total = states.around(1, tiny.layer(1)), torch.zeros(120, tiny.shape.hidden)
        experts = [each for each in tiny.shape.couplings(around.shape).neurons if each.expert is not None]
        for coupling in experts:
            inputs = around.neurons_of(coupling)
            assert isinstance(inputs, ExpertInputs)
            rows, shares = inputs.routed
            x, y, _ = inputs.mlp(slice(0, 12))
            torch.testing.assert_close(inputs.mlp_output(x, inputs.weights), y)
            total.index_add_(0, rows, y if coupling.router else y * shares[:, None])
        x = torch.from_numpy(around.before[:].copy())
        seen = tiny.shape.stock.watched(1, tiny.layer(1), x, outputs=(experts[0].reads,))
    given = seen.outputs[experts[0].reads]
    expected = given.reshape(-1, 120, tiny.shape.hidden).sum(0)  # Llama 4's come expert after expert
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
