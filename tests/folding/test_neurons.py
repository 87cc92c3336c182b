from typing import Any

import pytest
import torch
from reference_forward import mlp_neurons, reference
from torch import Tensor

from llmfold.clustering import squared_distances
from llmfold.folding.grouping import Groups
from llmfold.folding.layer import MergeOptions, fold_layer
from llmfold.folding.neurons import gauge_distances, gauge_factors, merge_neurons, neuron_rows
from llmfold.models import ModelShape

from .builders import generator, hidden_states, random_layer, relative, with_neuron_copies

ARITIES: dict[str, dict[str, Any]] = {"plain": {}, "biases": {"mlp_bias": True}}
COPIES, FACTORS = [3, 3, 17, 20, 39], [1.0, 2.5, -0.3, -1.0, 40.0]
N = 40


def mlp_output(raw: dict[str, Any], shape: ModelShape, weights: dict[str, Tensor]) -> Tensor:
    context = reference(raw, shape)
    neurons = mlp_neurons(hidden_states(shape, weights["up"].dtype), weights, context)
    return torch.nn.functional.linear(neurons, weights["down"], weights.get("down_bias"))


def fold_mlp(shape: ModelShape, weights: dict[str, Tensor], width: int, **options: Any) -> dict[str, Tensor]:
    from dataclasses import replace

    before = replace(shape.layers[0], intermediate=len(weights["gate"]))
    return next(fold_layer(weights, shape, before, [replace(before, intermediate=width)], MergeOptions(**options)))[0]


def rows_of(weights: dict[str, Tensor]) -> Tensor:
    """Neurons as rows, sorted so that two sets of neurons can be compared."""
    rows = torch.cat([block.double() for block in neuron_rows(weights)], 1)
    return rows[rows[:, 0].argsort()]


def balanced(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Gate rows, and up rows beside down columns of equal norm, by a loop over neurons."""
    gates, values = [], []
    for i in range(len(weights["gate"])):
        up, down = weights["up"][i].double(), weights["down"][:, i].double()
        if "up_bias" in weights:
            up = torch.cat((up, weights["up_bias"][i, None].double()))
        size = (up.norm() * down.norm()).sqrt()
        gate = weights["gate"][i].double()
        gates.append(torch.cat((gate, weights["gate_bias"][i, None].double())) if "gate_bias" in weights else gate)
        values.append(torch.cat((up / up.norm() * size, down / down.norm() * size)))
    return torch.stack(gates), torch.stack(values)


@pytest.mark.parametrize("cluster", ["ward", "kmeans", "hartigan"])
@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("fields", ARITIES.values(), ids=ARITIES)
def test_exact_duplicates_fold_away(cluster: str, align: str, fields: dict[str, Any]) -> None:
    raw, shape, weights = random_layer("llama", dtype=torch.float32, **fields)
    doubled = with_neuron_copies(weights, COPIES, [1.0] * len(COPIES))
    folded = fold_mlp(shape, doubled, N, cluster=cluster, align=align)
    assert folded["down"].shape == weights["down"].shape
    assert relative(mlp_output(raw, shape, folded), mlp_output(raw, shape, doubled)) < 1e-5


@pytest.mark.parametrize("cluster", ["ward", "kmeans", "hartigan"])
@pytest.mark.parametrize("fields", ARITIES.values(), ids=ARITIES)
def test_duplicates_of_another_scale_and_sign_fold_away_in_their_gauge(cluster: str, fields: dict[str, Any]) -> None:
    raw, shape, weights = random_layer("llama", dtype=torch.float32, **fields)
    doubled = with_neuron_copies(weights, COPIES, FACTORS)
    expected = mlp_output(raw, shape, doubled)
    assert (
        relative(mlp_output(raw, shape, fold_mlp(shape, doubled, N, cluster=cluster, align="gauge")), expected) < 1e-5
    )
    assert relative(mlp_output(raw, shape, fold_mlp(shape, doubled, N, cluster=cluster, align="none")), expected) > 1e-2


def test_variance_repair_leaves_exact_duplicates_alone() -> None:
    raw, shape, weights = random_layer("llama", dtype=torch.float32)
    doubled = with_neuron_copies(weights, COPIES, FACTORS)
    folded = fold_mlp(shape, doubled, N, align="gauge", repair="variance")
    assert relative(mlp_output(raw, shape, folded), mlp_output(raw, shape, doubled)) < 1e-5


@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("repair", ["none", "variance"])
def test_permuting_neurons_permutes_nothing_in_the_function(align: str, repair: str) -> None:
    raw, shape, weights = random_layer("llama", mlp_bias=True)
    order = torch.randperm(N, generator=generator(5))
    permuted = dict(weights)
    for role in ("gate", "up", "gate_bias", "up_bias"):
        permuted[role] = weights[role][order]
    permuted["down"] = weights["down"][:, order]
    found = [mlp_output(raw, shape, fold_mlp(shape, w, 27, align=align, repair=repair)) for w in (weights, permuted)]
    assert relative(found[1], found[0]) < 1e-10


@pytest.mark.parametrize("repair", ["none", "variance"])
def test_rescaling_and_flipping_neurons_changes_nothing_under_gauge(repair: str) -> None:
    raw, shape, weights = random_layer("llama", mlp_bias=True)
    factor = torch.randn(N, generator=generator(3), dtype=torch.float64).exp()
    factor *= torch.where(torch.rand(N, generator=generator(4)) < 0.5, -1, 1)
    moved = dict(weights)
    moved["up"], moved["down"] = weights["up"] * factor[:, None], weights["down"] / factor
    moved["up_bias"] = weights["up_bias"] * factor
    assert relative(mlp_output(raw, shape, moved), mlp_output(raw, shape, weights)) < 1e-12
    gauge = [mlp_output(raw, shape, fold_mlp(shape, w, 27, align="gauge", repair=repair)) for w in (weights, moved)]
    plain = [mlp_output(raw, shape, fold_mlp(shape, w, 27, align="none", repair=repair)) for w in (weights, moved)]
    assert relative(gauge[1], gauge[0]) < 1e-9
    assert relative(plain[1], plain[0]) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("align", ["none", "gauge"])
def test_neurons_that_stand_alone_keep_their_bits(dtype: torch.dtype, align: str) -> None:
    _, shape, weights = random_layer("llama", dtype=dtype, mlp_bias=True)
    doubled = with_neuron_copies(weights, [0, 1], [2.0, -4.0])
    folded = fold_mlp(shape, doubled, N, align=align, repair="variance")
    assert all(folded[role].dtype == dtype for role in folded)
    before = {tuple(row) for row in torch.cat([b.float() for b in neuron_rows(doubled)], 1).tolist()}
    after = [tuple(row) for row in torch.cat([b.float() for b in neuron_rows(folded)], 1).tolist()]
    assert sum(row not in before for row in after) == 2
    assert folded["down_bias"].equal(weights["down_bias"])
    assert folded["q"].equal(weights["q"])


@pytest.mark.parametrize("fields", ARITIES.values(), ids=ARITIES)
def test_gauge_distances_are_those_of_the_definition(fields: dict[str, Any]) -> None:
    _, _, weights = random_layer("llama", **fields)
    gates, values = balanced(weights)
    found = gauge_distances(weights)
    signs = [(values[:, None] - sign * values).square().sum(-1) for sign in (1, -1)]
    expected = (gates[:, None] - gates).square().sum(-1) + torch.minimum(*signs)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(found, found.T)
    assert not found.diagonal().any()


def test_gauge_distances_do_not_see_the_gauge_and_vanish_between_copies() -> None:
    _, _, weights = random_layer("llama", mlp_bias=True)
    doubled = with_neuron_copies(weights, COPIES, FACTORS)
    plain = with_neuron_copies(weights, COPIES, [1.0] * len(COPIES))
    found = gauge_distances(doubled)
    assert torch.allclose(found, gauge_distances(plain), atol=1e-10)
    assert int((found < 1e-10).sum()) == N + len(COPIES) + 2 * 6
    rows = [torch.cat(balanced(doubled), 1)]
    unaligned = squared_distances(rows, rows[0] @ rows[0].T)
    assert bool((found <= unaligned + 1e-9).all())


def test_factors_bring_a_cluster_to_one_gauge() -> None:
    _, _, weights = random_layer("llama", mlp_bias=True)
    doubled = with_neuron_copies(weights, COPIES, FACTORS)
    index = torch.cat([torch.arange(N), torch.tensor(COPIES)])[torch.randperm(N + 5, generator=generator(0))]
    names = list(dict.fromkeys(index.tolist()))
    groups = Groups(torch.tensor([names.index(i) for i in index.tolist()]))
    factors = gauge_factors(doubled, groups)
    alone = groups.sizes[groups.labels] == 1
    assert bool((factors[alone] == 1).all())
    up, down = doubled["up"] * factors[:, None], doubled["down"] / factors
    for group in groups.merged.tolist():
        members = groups.members(group)
        assert torch.allclose(up[members], up[members[:1]].expand(len(members), -1), rtol=1e-9)
        assert torch.allclose(down[:, members], down[:, members[:1]].expand(-1, len(members)), rtol=1e-9)
        joint = torch.cat((up[members[0]], (doubled["up_bias"] * factors)[members[:1]]))
        assert float(joint.norm()) == pytest.approx(float(down[:, members[0]].norm()))


@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("repair", ["none", "variance"])
@pytest.mark.parametrize("cluster", ["ward", "kmeans", "hartigan"])
@pytest.mark.parametrize("dead", ["up", "down", "all"])
def test_dead_neurons_give_no_nan(align: str, repair: str, cluster: str, dead: str) -> None:
    raw, shape, weights = random_layer("llama", dtype=torch.float32)
    for role in ("gate", "up", "down") if dead == "all" else (dead,):
        (weights[role].T if role == "down" else weights[role])[5:12] = 0
    folded = fold_mlp(shape, weights, 20, align=align, repair=repair, cluster=cluster)
    assert all(bool(tensor.isfinite().all()) for tensor in folded.values())
    assert bool(mlp_output(raw, shape, folded).isfinite().all())


def test_an_mlp_of_zeros_folds_to_zeros() -> None:
    raw, shape, weights = random_layer("llama", dtype=torch.float32)
    zeros = {role: torch.zeros_like(t) if role in ("gate", "up", "down") else t for role, t in weights.items()}
    folded = fold_mlp(shape, zeros, 7, align="gauge", repair="variance")
    assert not mlp_output(raw, shape, folded).any()


def test_neurons_of_magnitudes_far_apart_stay_finite_and_in_gauge() -> None:
    raw, shape, weights = random_layer("llama", dtype=torch.float32)
    doubled = with_neuron_copies(weights, [0, 1, 2], [1e8, -1e-8, 1e5])
    folded = fold_mlp(shape, doubled, N, align="gauge")
    assert relative(mlp_output(raw, shape, folded), mlp_output(raw, shape, doubled)) < 1e-5


def test_merging_is_mean_of_gate_and_up_and_sum_of_down() -> None:
    _, _, weights = random_layer("llama", mlp_bias=True)
    labels = torch.arange(N) // 4
    merged = merge_neurons(weights, Groups(labels), scale=torch.full((10,), 3.0))
    assert torch.allclose(merged["gate"], weights["gate"].view(10, 4, -1).mean(1))
    assert torch.allclose(merged["gate_bias"], weights["gate_bias"].view(10, 4).mean(1))
    assert torch.allclose(merged["up"], 3 * weights["up"].view(10, 4, -1).mean(1))
    assert torch.allclose(merged["up_bias"], 3 * weights["up_bias"].view(10, 4).mean(1))
    assert torch.allclose(merged["down"], weights["down"].view(-1, 10, 4).sum(2))
    assert merged["down"].is_contiguous()
    assert torch.equal(merged["down_bias"], weights["down_bias"])
