"""Every score against a plain formula on what stock transformers computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmfold.methods.baselines.structures import Units
from llmfold.models import Role

from .builders import KINDS, Prepared, consumer_inputs

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


def naive_sums(entry: Callable[[Role], Tensor], prepared: Prepared) -> tuple[Tensor, Tensor]:
    """Sum an entry of every weight over neurons and head units, unit by unit."""
    entries = {role: entry(role).double() for role in LINEAR}
    n, size = prepared.layer.intermediate, prepared.layer.heads * prepared.shape.head_dim // prepared.units
    neurons = [entries["gate"][i].sum() + entries["up"][i].sum() + entries["down"][:, i].sum() for i in range(n)]
    heads = []
    for unit in range(prepared.units):
        rows = slice(unit * size, (unit + 1) * size)
        total = entries["q"][rows].sum() + entries["o"][:, rows].sum()
        if prepared.layer.kv_heads > 1:
            own = slice(unit * prepared.shape.head_dim, (unit + 1) * prepared.shape.head_dim)
            total += entries["k"][own].sum() + entries["v"][own].sum()
        heads.append(total)
    return torch.stack(neurons), torch.stack(heads)


def scores(prepared: Prepared, index: int) -> Units:
    return prepared.pruner.scores(index, prepared.weights(index), prepared.layer)


def check(found: Units, neurons: Tensor, heads: Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found.neurons, neurons.double(), rtol=rtol, atol=0)
    torch.testing.assert_close(found.heads, heads.double(), rtol=rtol, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_is_the_norm_of_the_coupled_structure(tmp_path: Path, kind: str) -> None:
    prepared = Prepared(tmp_path, kind, "magnitude")
    for index in range(2):
        weights = prepared.weights(index)
        neurons, heads = naive_sums(lambda role, w=weights: w[role].square(), prepared)
        check(scores(prepared, index), neurons.sqrt(), heads.sqrt(), rtol=1e-6)


def test_random_draws_differ_by_layer_and_seed_only(tmp_path: Path) -> None:
    one, again = Prepared(tmp_path / "a", "gqa", "random"), Prepared(tmp_path / "b", "gqa", "random")
    other = Prepared(tmp_path / "c", "gqa", "random", seed=1)
    assert torch.equal(scores(one, 0).neurons, scores(again, 0).neurons)
    assert not torch.equal(scores(one, 0).neurons, scores(one, 1).neurons)
    assert not torch.equal(scores(one, 0).neurons, scores(other, 0).neurons)
    assert scores(one, 0).heads.shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_fluctuation_is_variance_times_column_norm(tmp_path: Path, kind: str) -> None:
    prepared = Prepared(tmp_path, kind, "flap-uniform", bias=False)
    for index, inputs in enumerate(consumer_inputs(prepared.stock(), prepared.tokens)):
        weights = prepared.weights(index)
        features = {r: inputs[r].var(0) * weights[r].double().norm(dim=0) ** 2 for r in ("o", "down")}
        check(scores(prepared, index), features["down"], features["o"].square().view(prepared.units, -1).sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_wanda_scores_the_first_layer_on_the_dense_stream(tmp_path: Path, kind: str) -> None:
    prepared = Prepared(tmp_path, kind, "wanda-sp")
    prepared.pruner.start(0, [])
    inputs, weights = consumer_inputs(prepared.stock(), prepared.tokens)[0], prepared.weights(0)
    features = {r: (weights[r].abs() * inputs[r].norm(dim=0)).mean(0) for r in ("o", "down")}
    check(scores(prepared, 0), features["down"], features["o"].view(prepared.units, -1).sum(1))


def test_wanda_scores_later_layers_on_what_pruned_layers_made(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, "gqa", "wanda-sp")
    pruner, model = prepared.pruner, prepared.stock()
    pruner.start(0, [])
    narrow = type(prepared.layer)(36, 4, 2)
    pruned, _ = pruner.fold(0, prepared.weights(0), prepared.layer, narrow)
    pruner.sync_state()
    pruner.on_committed()
    mlp = model.model.layers[0].mlp
    for role in ("gate", "up", "down"):
        getattr(mlp, f"{role}_proj").weight = torch.nn.Parameter(pruned[role])
    inputs, weights = consumer_inputs(model, prepared.tokens)[1], prepared.weights(1)
    features = {r: (weights[r].abs() * inputs[r].norm(dim=0)).mean(0) for r in ("o", "down")}
    check(scores(prepared, 1), features["down"], features["o"].view(prepared.units, -1).sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_taylor_importance_is_weight_times_gradient(tmp_path: Path, kind: str) -> None:
    prepared = Prepared(tmp_path, kind, "llm-pruner")
    model = prepared.stock()
    model(prepared.tokens, labels=prepared.tokens).loss.backward()
    for index, layer in enumerate(model.model.layers):

        def entry(role: Role, layer: torch.nn.Module = layer) -> Tensor:
            block = layer.mlp if role in ("gate", "up", "down") else layer.self_attn
            weight = getattr(block, f"{role}_proj").weight
            return (weight * weight.grad).abs().detach()

        check(scores(prepared, index), *naive_sums(entry, prepared), rtol=1e-3)
    assert not list((tmp_path / "work" / "states").glob("trace*"))
