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

from llmfold.effort import EFFORTS, Effort
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


LAYERS = {
    "gate": ("mlp.gate",),
    "up": ("mlp.up",),
    "down": ("mlp.down",),
    "o": ("self_attn.o",),
    "values": ("self_attn.v",),
    "queries and keys": ("self_attn.q", "self_attn.k"),
    "norm of MLP": ("post_attention",),
    "norm of attention": ("input_layernorm",),
    "whole layer": ("",),
}
"""What of a layer is zero; a model has one layer of each kind."""
MODELS = {
    "without energy": _scaled(""),
    "of equal units": _equal_units,
    "faint": _scaled("layers.0.", factor=1e-25),
    "loud": _scaled("0.mlp.gate", "0.mlp.up", "0.mlp.down", factor=1e5),
}
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {"num_hidden_layers": 1},
    "one KV group": {"num_key_value_heads": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32},
    "few tokens": {"vocab_size": 3},
}


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few tokens, whatever the effort."""
    for name in EFFORTS:
        monkeypatch.setitem(EFFORTS, name, Effort(tokens=256, length=16, refine=2))
    monkeypatch.setattr(build, "PopulationOptions", lambda: PopulationOptions(16, 64, 2))


def _must_load(model: Path, output: Path, options: dict[str, Any]) -> None:
    report = fold(model, output=output, **{"fidelity_tokens": 64, **options})
    remote = bool(report.plan["needs_trust_remote_code"])
    assert report.parameters_after < report.parameters_before
    assert logits(output, torch.tensor([[1, 2, 0]]), remote_code=remote).isfinite().all()
    json.loads((output / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    shutil.rmtree(output)


@pytest.mark.parametrize("method", METHODS)
def test_layers_without_energy_are_folded(method: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=len(LAYERS))
    for index, parts in enumerate(LAYERS.values()):
        edit_tensors(model, _scaled(*(f"layers.{index}.{part}" for part in parts)))
    _must_load(model, tmp_path / "out", {**METHODS[method], "ratio": 0.3})


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_models_are_folded(method: str, kind: str, model: Path, tmp_path: Path) -> None:
    edit_tensors(model, MODELS[kind])
    _must_load(model, tmp_path / "out", {**METHODS[method], "ratio": 0.3})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_one_of_everything_is_folded(method: str, shape: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", **SHAPES[shape])
    _must_load(model, tmp_path / "out", {**METHODS[method], "ratio": 0.2})


@pytest.mark.parametrize("method", ["weights", "self", "paper", "magnitude", "wanda-sp", "flap-uniform", "llm-pruner"])
def test_ratio_zero_changes_nothing(method: str, model: Path, tmp_path: Path) -> None:
    edit_tensors(model, _scaled("layers.0."))
    options = {**METHODS[method], **({"bias": False} if method == "flap-uniform" else {})}
    fold(model, output=tmp_path / "out", ratio=0.0, **options)
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(model)


def test_nothing_wrong_with_nothing_is_no_error() -> None:
    assert relative_error(0.0, 0.0) == 0.0
    assert relative_error(1.0, 0.0) == float("inf")
    assert relative_error(1.0, 4.0) == 0.25
