"""Plans from measured curves."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfold import FoldConfig, UsageError
from llmfold.architectures import LayerShape, ModelShape
from llmfold.architectures.llama import LLAMA
from llmfold.planning import LayerCurves, Sensitivities, plan_widths

LAYER = LayerShape(intermediate=60, heads=8, kv_heads=4)


def shape(layers: int = 3) -> ModelShape:
    return ModelShape(LLAMA, 32, 8, 100, (LAYER,) * layers, True, False, False, False)


def curves(neuron: list[float], head: list[float], power: float = 1.5) -> Sensitivities:
    return Sensitivities(
        [
            LayerCurves([n * k**power for k in range(60)], [h * k**power for k in range(4)])
            for n, h in zip(neuron, head, strict=True)
        ]
    )


def config(ratio: float, allocation: str = "uniform") -> FoldConfig:
    return FoldConfig(model="m", ratio=ratio, ratio_of="decoder", method="self", allocation=allocation)


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
def test_adaptive_plan_meets_the_ratio_and_predicts_no_more_error(
    neuron: list[float], head: list[float], ratio: float
) -> None:
    model, measured = shape(), curves(neuron, head)
    adaptive = plan_widths(model, config(ratio, "adaptive"), measured)
    wanted = ratio * model.decoder_parameters
    assert abs(removed(model, adaptive) - wanted) <= 1.5 * model.neuron_parameters
    uniform = plan_widths(model, config(ratio), measured)
    step = 3 * model.neuron_parameters
    slack = measured.error(model.layers, uniform) * (1 + 3 * step / max(wanted, 1)) + max(*neuron, *head) * 8
    assert measured.error(model.layers, adaptive) <= slack


def test_curves_survive_their_file(tmp_path: Path) -> None:
    measured = curves([1.0, 2.0], [3.0, 4.0])
    measured.save(tmp_path / "curves.json")
    assert Sensitivities.load(tmp_path / "curves.json") == measured


def test_what_was_not_measured_is_infinite() -> None:
    assert LayerCurves([0.0, 1.0], [0.0]).error(LAYER, LayerShape(58, 8, 4)) == float("inf")


def test_adaptive_needs_a_method_that_measures() -> None:
    with pytest.raises(UsageError, match="--allocation adaptive"):
        FoldConfig(model="m", ratio=0.2, method="paper", allocation="adaptive")
