"""Layers without energy, and models of one of everything: every method folds them, and reports numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import edit_tensors, fold, logits, tensor_hashes, tiny_model
from torch import Tensor

from llmfold import UsageError, plan
from llmfold.effort import EFFORTS, Effort
from llmfold.evaluation.fidelity import held_back_tokens
from llmfold.methods.reconstruction import build
from llmfold.methods.reconstruction.population import PopulationOptions
from llmfold.repair.least_squares import relative_error

TOKENS = {"num_samples": 16, "sequence_length": 16}
SELF, TEXTLESS = {"method": "self", "refine": 2, **TOKENS}, {"data": "self", **TOKENS}
METHODS: dict[str, dict[str, Any]] = {
    "weights": {"method": "weights"},
    "weights-adaptive": {"method": "weights", "allocation": "adaptive"},
    "self": SELF,
    "self-adaptive": {**SELF, "allocation": "adaptive"},
    "paper": {"method": "paper"},
    "paper-kmeans": {"method": "paper", "cluster": "kmeans"},
    "paper-hartigan": {"method": "paper", "cluster": "hartigan", "repair": "variance"},
    "paper-gauge": {"method": "paper", "align": "gauge", "repair": "variance"},
    "paper-gauge-kmeans": {"method": "paper", "align": "gauge", "cluster": "kmeans"},
    "random": {"method": "random"},
    "magnitude": {"method": "magnitude"},
    "wanda-sp": {"method": "wanda-sp", **TEXTLESS},
    "flap": {"method": "flap", **TEXTLESS},
    "flap-uniform": {"method": "flap-uniform", **TEXTLESS},
    "llm-pruner": {"method": "llm-pruner", **TEXTLESS},
}


def _scaled(*parts: str, factor: float = 0.0) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if any(part in name for part in parts):
                tensor.mul_(factor)

    return change


def _equal_units(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor.fill_(0.125)


LAYERS: dict[str, tuple[float, tuple[str, ...]]] = {
    "gate": (0.0, ("mlp.gate",)),
    "up": (0.0, ("mlp.up",)),
    "down": (0.0, ("mlp.down",)),
    "o": (0.0, ("self_attn.o",)),
    "values": (0.0, ("self_attn.v",)),
    "queries and keys": (0.0, ("self_attn.q", "self_attn.k")),
    "norm of MLP": (0.0, ("post_attention",)),
    "norm of attention": (0.0, ("input_layernorm",)),
    "whole layer": (0.0, ("",)),
    "faint": (1e-25, ("",)),
    "loud": (1e5, ("mlp.gate", "mlp.up", "mlp.down")),
}
"""By what some tensors of a layer are multiplied; a model has one layer of each kind, the loud one last."""
MODELS = {"without energy": _scaled(""), "of equal units": _equal_units}
ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
SHAPES: dict[str, tuple[dict[str, Any], float]] = {
    "one layer, one head": ({"num_hidden_layers": 1, **ONE_HEAD, "vocab_size": 3, "max_position_embeddings": 2}, 0.2),
    "one neuron, one KV group": ({"intermediate_size": 1, "num_key_value_heads": 1}, 0.21),
}
"""What there is one of, tokens and positions being few, and the ratio that is removed of such a model."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each kind, that no test may change."""
    folder = tmp_path_factory.mktemp("degenerate")
    configs = {"layers": {"num_hidden_layers": len(LAYERS)}, **{name: config for name, (config, _) in SHAPES.items()}}
    names = [*configs, *MODELS]
    found = {name: tiny_model(folder / str(i), **configs.get(name, {})) for i, name in enumerate(names)}
    for name, change in MODELS.items():
        edit_tensors(found[name], change)
    for index, (factor, parts) in enumerate(LAYERS.values()):
        edit_tensors(found["layers"], _scaled(*(f"layers.{index}.{part}" for part in parts), factor=factor))
    return found


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few tokens, whatever the effort."""
    for name in EFFORTS:
        monkeypatch.setitem(EFFORTS, name, Effort(tokens=256, length=16, refine=2))
    monkeypatch.setitem(held_back_tokens.__kwdefaults__, "length", 8)
    monkeypatch.setattr(build, "PopulationOptions", lambda: PopulationOptions(16, 64, 2))


def _must_load(model: Path, output: Path, options: dict[str, Any]) -> None:
    report = fold(model, output=output, **{"fidelity_tokens": 64, **options})
    remote = bool(report.plan["needs_trust_remote_code"])
    assert report.parameters_after < report.parameters_before
    assert logits(output, torch.tensor([[1, 2, 0]]), remote_code=remote).isfinite().all()
    json.loads((output / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    shutil.rmtree(output)


@pytest.mark.parametrize("method", METHODS)
def test_layers_without_energy_are_folded(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    _must_load(models["layers"], tmp_path / "out", {**METHODS[method], "ratio": 0.3})


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_models_are_folded(method: str, kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    _must_load(models[kind], tmp_path / "out", {**METHODS[method], "ratio": 0.3})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_one_of_everything_is_folded(method: str, shape: str, models: dict[str, Path], tmp_path: Path) -> None:
    config, ratio = SHAPES[shape]
    options = {**METHODS[method], "ratio": ratio}
    if "max_position_embeddings" in config and "sequence_length" in options:
        options["sequence_length"] = config["max_position_embeddings"]
    _must_load(models[shape], tmp_path / "out", options)


@pytest.mark.parametrize("method", ["calibrated", "wanda-sp", "flap", "flap-uniform", "llm-pruner"])
def test_two_tokens_that_are_the_same_are_measured_on_and_one_is_refused(
    method: str, reader: Path, tmp_path: Path
) -> None:
    for name, letters in (("one", ""), ("same", "a" * 64)):
        (tmp_path / name).write_text(letters)
    options = {"method": method, "ratio": 0.2, "num_samples": 1, "sequence_length": 2}
    with pytest.raises(UsageError, match="holds 1 tokens but 2 are wanted"):
        plan(str(reader), data=str(tmp_path / "one"), **options)
    _must_load(reader, tmp_path / "out", {**options, "data": str(tmp_path / "same")})


@pytest.mark.parametrize("method", ["self", "flap"])
def test_a_model_of_one_position_measures_nothing(method: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", max_position_embeddings=1)
    options = {**METHODS[method], "ratio": 0.2, "num_samples": None, "sequence_length": None}
    with pytest.raises(UsageError, match=r"max_position_embeddings in config\.json is 1, .*pass --method weights"):
        plan(str(model), **options)
    plan(str(model), method="weights", ratio=0.2)


@pytest.mark.parametrize(
    "method", ["weights", "self", "paper", "magnitude", "wanda-sp", "flap", "flap-uniform", "llm-pruner"]
)
def test_ratio_zero_changes_nothing(method: str, model: Path, tmp_path: Path) -> None:
    edit_tensors(model, _scaled("layers.0."))
    options = {**METHODS[method], **({"bias": False} if "flap" in method else {})}
    fold(model, output=tmp_path / "out", ratio=0.0, **options)
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(model)


def test_nothing_wrong_with_nothing_is_no_error() -> None:
    assert relative_error(0.0, 0.0) == 0.0
    assert relative_error(1.0, 0.0) == float("inf")
    assert relative_error(1.0, 4.0) == 0.25
