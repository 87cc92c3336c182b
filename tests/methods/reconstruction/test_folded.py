"""The states of the model folded so far: they are the output's own, and an MLP is to make up for half of the drift."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stock_models import some_tokens, tiny_stock
from support import SINGLE, fold, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Checkpoint
from llmfold.methods.base import Output
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement
from llmfold.methods.reconstruction import folded as module
from llmfold.methods.reconstruction.folded import FoldedStates
from llmfold.methods.reconstruction.held import corrects
from llmfold.models import Role
from llmfold.models.context import Context
from llmfold.models.tying import running_shape
from llmfold.runtime.hidden_states import chunks

SIZE = (24, 10)
MEASURED: dict[str, Any] = {"num_samples": 32, "sequence_length": 64, "fidelity_tokens": 0}
Followed = tuple[LayerInputs, LayerInputs, dict[Role, Tensor]]


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    """The states before layer 1 of a model whose layer 0 lost neurons and heads; and the dense layer 1."""
    tiny = tiny_stock("llama")
    embedded, context = tiny.shape.stock.embed(tiny.outside, some_tokens(*SIZE)), Context(tiny.shape)
    first = lambda: (embedded[part] for part in chunks(SIZE[0]))  # noqa: E731
    measurement = Measurement(context, first, SIZE, tmp_path, torch.device("cpu"))
    dense, tensors = DenseStates(measurement), {index: dict(tiny.layer(index)) for index in range(2)}
    dense.move_to([1], tensors.__getitem__)
    layer = tiny.shape.layers[0]
    less = layer.with_units(layer.intermediate // 2, 1)
    narrow = {role: tensors[0][role][tuple(map(slice, size))] for role, size in tiny.shape.layer_roles(less)}
    output = Output(tmp_path / "out", [less, *tiny.shape.layers[1:]], [narrow, tensors[1]].__getitem__)
    states = FoldedStates(measurement, output)
    states.move_to(1)
    around = dense.around(1, tensors[1])
    return states.inputs(around, tensors[1], around.shape), around, tensors[1]


@torch.no_grad()
def test_the_mlp_is_to_bring_the_states_half_way_to_those_of_the_dense_model(followed: Followed) -> None:
    inputs, dense, weights = followed
    (coupling,) = dense.measurement.shape.couplings(dense.shape).neurons
    x, before = (torch.from_numpy(np.array(states)) for states in (inputs.before, dense.before))
    assert x.shape == before.shape
    assert (x - before).norm() > 1e-2 * before.norm()
    context = dense.measurement.context
    silent = {**weights, coupling.slots["down"].tensor: torch.zeros_like(weights[coupling.slots["down"].tensor])}
    attended, own = (context.layer(x, each, 1) for each in (silent, weights))
    wanted = (own + torch.from_numpy(np.array(dense.after))) / 2
    given, output, w = inputs.neurons_of(coupling).mlp(slice(0, SIZE[0]))
    torch.testing.assert_close(attended.flatten(0, 1) + output, wanted.flatten(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w, 1 / (wanted.square().mean(-1).flatten() + 1e-6))
    own_output = coupling.outputs(given, coupling.view(weights, dense.shape))
    torch.testing.assert_close(attended.flatten(0, 1) + own_output, own.flatten(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "steps", "sequences", "expected"),
    [
        ("llama", 1, 16, True),
        ("llama", 0, 16, False),
        ("llama", 1, 1, False),
        ("Gemma2", 1, 16, False),
        ("Mixtral", 1, 16, False),
    ],
)
def test_only_an_mlp_that_is_added_as_it_is_can_make_up_for_what_others_lost(
    tmp_path: Path, family: str, steps: int, sequences: int, expected: bool
) -> None:
    shape = running_shape(Checkpoint.open(tiny_model(tmp_path / "m", family, pad_token_id=0)))
    assert corrects(shape, steps, sequences) == expected


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("deep") / "m", num_hidden_layers=3)


def hidden_states(folder: Path, tokens: Path) -> tuple[Tensor, ...]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: tuple[Tensor, ...] = model.model(
            torch.from_numpy(np.load(tokens)).long(), output_hidden_states=True
        ).hidden_states
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_refined_on_the_states_of_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    seen, inputs = {}, FoldedStates.inputs

    def noted(states: FoldedStates, dense: LayerInputs, *rest: Any) -> LayerInputs:
        found = inputs(states, dense, *rest)
        seen[dense.index] = torch.from_numpy(np.array(found.before))
        return found

    monkeypatch.setattr(FoldedStates, "inputs", noted)
    model, out = tiny_model(tmp_path / "m", num_hidden_layers=3, dtype=dtype), tmp_path / "out"
    fold(model, method="self", mlp_ratio=0.25, attention_ratio=0.5, refine=5, output=out, **MEASURED)
    states = hidden_states(out, out / "llmfold_tokens.npy")
    for index in range(3):
        torch.testing.assert_close(seen[index], states[index], rtol=1e-4, atol=1e-5)


def test_correction_brings_the_last_states_nearer_to_the_dense_ones(
    tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rest(share: float) -> float:
        monkeypatch.setattr(module, "CORRECTION", share)
        out = tmp_path / f"{share}"
        fold(deep, method="self", mlp_ratio=0.5, refine=60, output=out, **MEASURED)
        dense, folded = (hidden_states(folder, out / "llmfold_tokens.npy")[2] for folder in (deep, out))
        return float((dense - folded).square().mean())

    assert rest(0.5) < 0.98 * rest(0.0)


def test_what_earlier_layers_lost_changes_the_refined_mlp_and_nothing_else(tmp_path: Path, deep: Path) -> None:
    for name, layers in (("alone", "1"), ("all", "0-1")):
        options = {"layers": {layers: {"mlp": 0.5, "attention": 0.5}}, "refine": 60, **MEASURED}
        report = fold(deep, method="self", output=tmp_path / name, **options)
        before, after = report.layers[1]["mlp"]["refined_errors"]
        assert after < before
    alone, every = (load_file(tmp_path / name / SINGLE) for name in ("alone", "all"))
    differ = {name for name in alone if ".layers.1." in name and not torch.equal(alone[name], every[name])}
    assert differ == {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
