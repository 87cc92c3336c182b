"""Plans from measured curves."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfold import FoldConfig, UsageError
from llmfold.models import ARCHITECTURES, LayerShape, ModelShape
from llmfold.planning import LayerCurves, Sensitivities, plan_widths

LAYER = LayerShape(intermediate=60, heads=8, kv_heads=4)


def shape(layers: int = 3) -> ModelShape:
    return ModelShape(ARCHITECTURES["llama"], 32, 8, 100, (LAYER,) * layers, True, False, False, False, 2048)


def curves(neuron: list[float], head: list[float], power: float = 1.5) -> Sensitivities:
    return Sensitivities(
        [
            LayerCurves([n * k**power for k in range(60)], [h * k**power for k in range(4)])
            for n, h in zip(neuron, head, strict=True)
        ]
    )


def config(ratio: float, allocation: str = "uniform", attention_ratio: float | None = None) -> FoldConfig:
    return FoldConfig(
        "m", ratio=ratio, ratio_of="decoder", method="self", allocation=allocation, attention_ratio=attention_ratio
    )


def removed(before: ModelShape, layers: tuple[LayerShape, ...]) -> int:
    return before.decoder_parameters - sum(map(before.layer_parameters, layers))


def test_uniform_plan_takes_heads_only_where_they_are_cheap() -> None:
    model = shape()
    dear = plan_widths(model, config(0.3), curves([1e-3] * 3, [10.0] * 3))
    cheap = plan_widths(model, config(0.3), curves([1.0] * 3, [1e-3] * 3))
    assert {layer.kv_heads for layer in dear} == {4}
    assert {layer.kv_heads for layer in cheap} == {2}  # a third group would remove more than asked for
    assert len(set(cheap)) == 1


def test_uniform_plan_is_the_best_of_all_that_meet_the_ratio() -> None:
    model, measured = shape(), curves([1.0] * 3, [9.0] * 3)
    chosen = plan_widths(model, config(0.3), measured)
    others = [
        plan_widths(model, FoldConfig(model="m", ratio=0.3, ratio_of="decoder", attention_ratio=g / 4))
        for g in range(3)
    ]
    assert measured.error(model.layers, chosen) == min(measured.error(model.layers, o) for o in others)


def test_adaptive_plan_spares_the_sensitive_layer() -> None:
    layers = plan_widths(shape(), config(0.3, "adaptive"), curves([1.0, 20.0, 1.0], [1e6] * 3))
    assert layers[1].intermediate > max(layers[0].intermediate, layers[2].intermediate)
    assert abs(layers[0].intermediate - layers[2].intermediate) <= 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.floats(0.02, 0.6),
)
def test_adaptive_plan_meets_the_ratio_and_no_exchange_of_neurons_improves_it(
    neuron: list[float], head: list[float], ratio: float
) -> None:
    model, measured = shape(), curves(neuron, head)
    layers = plan_widths(model, config(ratio, "adaptive"), measured)
    assert abs(removed(model, layers) - ratio * model.decoder_parameters) <= 0.5 * model.neuron_parameters + 1
    error = measured.error(model.layers, layers)
    for wider, narrower in itertools.permutations(range(3), 2):
        exchanged = [layer.intermediate for layer in layers]
        exchanged[wider] += 1
        exchanged[narrower] -= 1
        if exchanged[wider] <= 60 and exchanged[narrower] >= 1:
            other = tuple(replace(a, intermediate=n) for a, n in zip(layers, exchanged, strict=True))
            assert measured.error(model.layers, other) >= error * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.floats(0.02, 0.6),
)
def test_measured_uniform_plan_is_met_and_no_worse_than_the_rule(
    neuron: list[float], head: list[float], ratio: float
) -> None:
    model, measured = shape(), curves(neuron, head)
    chosen, rule = plan_widths(model, config(ratio), measured), plan_widths(model, config(ratio))
    assert len(set(chosen)) == 1
    assert abs(removed(model, chosen) - ratio * model.decoder_parameters) <= 1.5 * model.neuron_parameters + 1
    assert measured.error(model.layers, chosen) <= measured.error(model.layers, rule) * (1 + 1e-9)


def test_curves_survive_their_file(tmp_path: Path) -> None:
    measured = curves([1.0, 2.0], [3.0, 4.0])
    measured.save(tmp_path / "curves.json")
    assert Sensitivities.load(tmp_path / "curves.json") == measured


def test_errors_grow_as_squares_beyond_what_was_measured() -> None:
    curve = LayerCurves([0.0, 1.0], [0.0])
    assert curve.error(LAYER, LayerShape(58, 8, 4)) == 4.0
    assert curve.error(LAYER, LayerShape(60, 6, 3)) == float("inf")


@pytest.mark.parametrize(
    "options", [{"ratio": 0.2, "method": "paper"}, {"ratio": 0.2, "mlp_ratio": 0.2}, {"mlp_ratio": 0.2}]
)
def test_adaptive_needs_a_method_that_measures_and_neurons_that_are_free(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--allocation adaptive"):
        FoldConfig(model="m", allocation="adaptive", **options)


@pytest.mark.parametrize(("attention", "groups"), [(0, 4), (0.25, 3)])
def test_adaptive_neurons_beside_heads_that_are_given(attention: float, groups: int) -> None:
    model, measured = shape(), curves([1.0, 20.0, 1.0], [1e-9] * 3)
    wanted = config(0.3, "adaptive", attention_ratio=attention)
    layers = plan_widths(model, wanted, measured)
    assert wanted.measures
    assert {layer.kv_heads for layer in layers} == {groups}  # though fewer would cost next to nothing
    assert layers[1].intermediate > max(layers[0].intermediate, layers[2].intermediate)
    assert abs(removed(model, layers) - 0.3 * model.decoder_parameters) <= 0.5 * model.neuron_parameters + 1


def test_a_plan_in_the_models_own_class_is_preferred_where_little_is_lost() -> None:
    layer = LayerShape(intermediate=60, heads=6, kv_heads=6)
    model = ModelShape(ARCHITECTURES["llama"], 48, 8, 100, (layer,), True, False, False, False, 2048)

    def chosen(price: float) -> int:
        five_heads_are_best = LayerCurves([float(n) for n in range(60)], [0.0, 1e-3, price, 1e9, 1e9, 1e9])
        return plan_widths(model, config(0.3), Sensitivities([five_heads_are_best]))[0].heads

    assert chosen(1e9) == 5
    assert chosen(10.0) == 4


def test_a_split_is_not_better_for_removing_less() -> None:
    """Widths that are multiples of 20 miss the budget by up to half of that; which way is no merit."""
    model, wanted = shape(), FoldConfig("m", ratio=0.18, ratio_of="decoder", method="self", multiple_of=20)
    narrower = replace(LAYER, heads=6, kv_heads=3)
    neurons = (model.layer_parameters(LAYER) - model.layer_parameters(narrower)) / model.neuron_cost(LAYER)
    for price, kv_heads in ((1.1, 4), (0.9, 3)):
        measured = LayerCurves([float(n) for n in range(60)], [0.0, price * neurons, 1e9, 1e9])
        plans = plan_widths(model, wanted, Sensitivities([measured] * 3))
        assert {(layer.intermediate, layer.kv_heads) for layer in plans} == {(40 if kv_heads == 4 else 60, kv_heads)}
        assert price * neurons < 20  # by its legal widths, which remove less, the group of heads would win twice
