"""FLAP's allocation and bias compensation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_model
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.errors import UsageError
from llmfold.methods.baselines.flap.allocation import adaptive_widths, best_within, standardised_scores
from llmfold.methods.baselines.structures import Units, keep_units
from llmfold.models import LayerShape, shape_of
from llmfold.pipeline.opening import plan_from_config

from .builders import Prepared, consumer_inputs

CONSUMERS = (("o", "heads"), ("down", "neurons"))


def kept(prepared: Prepared, neurons: Tensor, heads: Tensor) -> tuple[dict[str, Tensor], Units]:
    units = Units(neurons, heads)
    weights = prepared.weights(0)
    pruned = keep_units(weights, prepared.pruner.structures(0), prepared.layer, units)
    return prepared.pruner.finish(0, weights, pruned, units), units


@pytest.mark.parametrize("kind", ["gqa", "mha", "mqa", "biased"])
@pytest.mark.parametrize("share", ["half", "nothing", "all"])
def test_biases_restore_the_mean_output(tmp_path: Path, kind: str, share: str) -> None:
    prepared = Prepared(tmp_path, kind, "flap-uniform")
    inputs = consumer_inputs(prepared.stock(), prepared.tokens)[0]
    counts = {"half": 2, "nothing": 1 << 30, "all": 1}[share]
    neurons, heads = torch.arange(48)[::counts], torch.arange(prepared.units)[::counts]
    if share == "nothing":
        neurons, heads = neurons[:0], heads[:0]
    pruned, _ = kept(prepared, neurons, heads)
    size = prepared.layer.heads * prepared.shape.head_dim // prepared.units
    features = {"down": neurons, "o": (heads[:, None] * size + torch.arange(size)).flatten()}
    for role, _ in CONSUMERS:
        output = inputs[role][:, features[role]] @ pruned[role].double().T + pruned[f"{role}_bias"].double()
        torch.testing.assert_close(output.mean(0), inputs[f"{role}_out"].mean(0), rtol=1e-5, atol=1e-6)


def test_other_projections_get_zero_biases_or_keep_theirs(tmp_path: Path) -> None:
    plain, biased = Prepared(tmp_path / "a", "gqa", "flap-uniform"), Prepared(tmp_path / "b", "biased", "flap-uniform")
    neurons, heads = torch.arange(0, 48, 2), torch.tensor([1])
    found, _ = kept(plain, neurons, heads)
    assert all(not found[f"{role}_bias"].any() for role in ("q", "k", "v", "gate", "up"))
    assert found["q_bias"].shape == (16,)
    assert found["k_bias"].shape == (8,)
    found, _ = kept(biased, neurons, heads)
    assert torch.equal(found["gate_bias"], biased.weights(0)["gate_bias"][neurons])
    assert torch.equal(found["k_bias"], biased.weights(0)["k_bias"][8:])


def test_best_within_takes_the_highest_values_nearest_to_the_budget() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
    costs = torch.tensor([2.0, 1.0, 5.0, 1.0, 1.0], dtype=torch.float64)
    assert best_within(values, costs, 7.0).tolist() == [True, False, True, False, False]
    assert best_within(values, costs, 4.0).tolist() == [True, False, False, False, False]
    assert best_within(values, costs, 0.0).tolist() == [False] * 5
    assert best_within(values, costs, 99.0).tolist() == [True] * 5


SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def layer_scores(seed: int, spread: tuple[float, ...]) -> list[Units]:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, scale: float) -> Tensor:
        return scale * torch.rand(size, generator=generator, dtype=torch.float64)

    return [Units(draw(48, scale), draw(2, scale)) for scale in spread]


@pytest.mark.parametrize("seed", range(5))
def test_pooled_widths_meet_the_budget_within_half_a_head(seed: int) -> None:
    shape = shape_of(SHAPE)
    planned = (LayerShape(30, 4, 2),) * 3
    widths = adaptive_widths(shape, planned, layer_scores(seed, (1.0, 1.2, 1.5)), pooled=True, multiple_of=None)
    wanted, found = (sum(map(shape.layer_parameters, layers)) for layers in (planned, widths))
    group = shape.layer_parameters(shape.layers[0]) - shape.layer_parameters(LayerShape(48, 2, 1))
    assert abs(wanted - found) <= group / 2
    assert len(set(widths)) > 1


def test_separate_budgets_keep_the_planned_number_of_each_part() -> None:
    shape = shape_of(SHAPE)
    planned = (LayerShape(30, 2, 1),) * 3
    widths = adaptive_widths(shape, planned, layer_scores(0, (1.0, 1.0, 1.0)), pooled=False, multiple_of=None)
    assert sum(layer.intermediate for layer in widths) == 90
    assert all(layer.heads == 2 * layer.kv_heads for layer in widths)


def test_every_layer_keeps_a_unit_of_each_part_and_widths_are_snapped_on_demand() -> None:
    shape = shape_of(SHAPE)
    planned = (LayerShape(16, 2, 1),) * 3
    scores = layer_scores(0, (1e-9, 1.0, 1.0))
    widths = adaptive_widths(shape, planned, scores, pooled=True, multiple_of=None)
    assert widths[0] == LayerShape(1, 2, 1)
    snapped = adaptive_widths(shape, planned, scores, pooled=True, multiple_of=8)
    assert all(layer.intermediate % 8 == 0 for layer in snapped)


def test_standardised_scores_compare_across_layers(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, "gqa", "flap", mlp_ratio=None, attention_ratio=None, ratio=0.2)
    for index, inputs in enumerate(consumer_inputs(prepared.stock(), prepared.tokens)):
        found = standardised_scores(prepared.pruner.statistics, index, prepared.layer)  # type: ignore[attr-defined]
        weight = prepared.weights(index)["o"].double()
        squared = (inputs["o"].var(0) * weight.norm(dim=0) ** 2).square()
        heads = ((squared - squared.mean()) / squared.std()).view(2, -1).mean(1)
        torch.testing.assert_close(found.heads, heads, rtol=1e-4, atol=1e-5)
        assert abs(float(found.neurons.mean())) < 1e-9
        assert abs(float(found.neurons.std()) - 1) < 1e-9


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_families_without_room_for_biases_are_told_of_the_option(tmp_path: Path, kind: str) -> None:
    config = FoldConfig(str(tiny_model(tmp_path / "m", kind)), method="flap", data="self", ratio=0.2)
    with pytest.raises(UsageError, match="--no-bias"):
        plan_from_config(config)
    assert plan_from_config(replace(config, bias=False)).ratio > 0.1
