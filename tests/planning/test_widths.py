import dataclasses
import itertools
import re
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from llmfold.config import FoldConfig, LayerOverride
from llmfold.errors import UsageError
from llmfold.models import ARCHITECTURES, LayerShape, ModelShape, shape_of
from llmfold.planning import FoldPlan, Rules, head_options, make_plan, plan_widths, snap, width_multiple

Widths = tuple[LayerShape, ...]
REAL: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "llama-2-13b": {
        "model_type": "llama",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "vocab_size": 32000,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-3-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "qwen2.5-72b": {
        "model_type": "qwen2",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}


def config(**options: Any) -> FoldConfig:
    return FoldConfig(model="none", **options)


def model(
    family: str = "llama",
    hidden: int = 64,
    n: int = 172,
    heads: int = 8,
    kv_heads: int = 4,
    layers: int = 5,
    vocabulary: int = 512,
    head_dim: int | None = None,
    **flags: bool,
) -> ModelShape:
    biases = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
    return ModelShape(
        architecture=ARCHITECTURES[family],
        hidden=hidden,
        head_dim=head_dim or hidden // heads,
        vocabulary=vocabulary,
        layers=(LayerShape(n, heads, kv_heads),) * layers,
        positions=2048,
        **{"tied": False, **biases, **flags},
    )


@st.composite
def models(draw: st.DrawFn, uniform: bool = True) -> ModelShape:
    family = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
    kv_heads, group = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    heads = kv_heads * group
    hidden = draw(st.integers(1, 20)) * (heads if family == "llama" else 8)
    shape = model(
        family,
        hidden=hidden,
        n=draw(st.one_of(st.integers(1, 60), st.integers(900, 1400), st.sampled_from([1024, 2752, 11008]))),
        heads=heads,
        kv_heads=kv_heads,
        layers=draw(st.integers(1, 5)),
        vocabulary=draw(st.integers(1, 3000)),
        head_dim=draw(st.sampled_from([2, 8, 64])),
        tied=draw(st.booleans()),
        qkv_bias=family == "qwen2" or (family == "llama" and draw(st.booleans())),
        mlp_bias=family == "llama" and draw(st.booleans()),
    )
    if not uniform:
        changed = [dataclasses.replace(x, intermediate=draw(st.integers(1, 2000))) for x in shape.layers]
        shape = dataclasses.replace(shape, layers=tuple(changed))
    return shape


def base(shape: ModelShape, ratio_of: str = "model") -> int:
    return shape.parameters if ratio_of == "model" else shape.decoder_parameters


def removed(shape: ModelShape, widths: Widths) -> int:
    return shape.decoder_parameters - sum(map(shape.layer_parameters, widths))


def mlp_step(shape: ModelShape, multiple_of: int | None = None) -> int:
    widths = [x.intermediate for x in shape.layers]
    multiples = [min(n, multiple_of or (128 if n >= 1024 else 1)) for n in widths]
    return sum(multiples) * shape.neuron_parameters


def check_legal(shape: ModelShape, widths: Widths, multiple_of: int | None = None) -> None:
    assert len(widths) == len(shape.layers)
    for old, new in zip(shape.layers, widths, strict=True):
        assert 1 <= new.intermediate <= old.intermediate
        assert 1 <= new.heads <= old.heads
        multiple = min(old.intermediate, multiple_of or (128 if old.intermediate >= 1024 else 1))
        assert new.intermediate == old.intermediate or new.intermediate % multiple == 0
        if old.kv_heads > 1:
            assert new.heads * old.kv_heads == new.kv_heads * old.heads
        else:
            assert new.kv_heads == 1
        if shape.architecture.model_type == "llama" and shape.biased:
            assert new.heads == old.heads or shape.hidden % new.heads == 0


def named_ratios(error: UsageError) -> list[float]:
    tail = str(error).split("cannot be met: ", 1)[1]
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", tail)]


def try_plan(shape: ModelShape, options: FoldConfig) -> tuple[Widths | None, list[float]]:
    """Widths, or the ratios that the refusal names."""
    try:
        return plan_widths(shape, options), []
    except UsageError as error:
        named = named_ratios(error)
    assert 1 <= len(named) <= 2
    return None, named


@settings(max_examples=250, deadline=None)
@given(shape=models(), ratio=st.floats(0, 0.99), ratio_of=st.sampled_from(["model", "decoder"]))
def test_ratio_is_met_within_half_a_step_or_the_largest_is_named(
    shape: ModelShape, ratio: float, ratio_of: str
) -> None:
    def check(wanted: float, found: Widths) -> None:
        check_legal(shape, found)
        assert abs(removed(shape, found) - wanted * base(shape, ratio_of)) <= mlp_step(shape) / 2 + 2

    widths, named = try_plan(shape, config(ratio=ratio, ratio_of=ratio_of))
    event("met" if widths else f"refused, {len(named)} named")
    if widths:
        check(ratio, widths)
    for value in named:
        check(value, plan_widths(shape, config(ratio=value, ratio_of=ratio_of)))
    if named:
        assert min(named) < ratio
        assert len(named) == 1 or ratio < max(named)


@settings(max_examples=100, deadline=None)
@given(shape=models(uniform=False), ratio=st.floats(0, 0.9), multiple_of=st.sampled_from([None, 1, 7, 64]))
def test_models_of_different_layers_meet_their_ratio_too(
    shape: ModelShape, ratio: float, multiple_of: int | None
) -> None:
    widths, named = try_plan(shape, config(ratio=ratio, multiple_of=multiple_of, ratio_of="decoder"))
    if widths is None:
        assert min(named) < ratio
        return
    check_legal(shape, widths, multiple_of)
    assert abs(removed(shape, widths) - ratio * shape.decoder_parameters) <= mlp_step(shape, multiple_of) / 2 + 2


@settings(max_examples=100, deadline=None)
@given(shape=models(), multiple_of=st.integers(1, 3000), ratio=st.floats(0, 0.9))
def test_widths_are_multiples_of_what_the_user_asks_for(shape: ModelShape, multiple_of: int, ratio: float) -> None:
    widths_found, _ = try_plan(shape, config(ratio=ratio, ratio_of="decoder", multiple_of=multiple_of))
    assume(widths_found)
    assert widths_found
    widths = widths_found
    check_legal(shape, widths, multiple_of)
    assert abs(removed(shape, widths) - ratio * shape.decoder_parameters) <= mlp_step(shape, multiple_of) / 2 + 2


@settings(max_examples=100, deadline=None)
@given(shape=models(), ratios=st.lists(st.floats(0, 0.95), min_size=2, max_size=6))
def test_a_larger_ratio_removes_no_less(shape: ModelShape, ratios: list[float]) -> None:
    found = [try_plan(shape, config(ratio=ratio, ratio_of="decoder"))[0] for ratio in sorted(ratios)]
    plans = [widths[0] for widths in found if widths]
    for small, large in itertools.pairwise(plans):
        assert large.heads <= small.heads
        if large.heads == small.heads:
            assert large.intermediate <= small.intermediate
        assert shape.layer_parameters(large) <= shape.layer_parameters(small) + mlp_step(shape) / len(shape.layers) + 1


@settings(max_examples=100, deadline=None)
@given(shape=models(), ratio=st.floats(0.01, 0.9))
def test_mlps_give_first_and_heads_only_when_mlps_would_lose_more_than_half(shape: ModelShape, ratio: float) -> None:
    widths_found, _ = try_plan(shape, config(ratio=ratio, ratio_of="decoder"))
    assume(widths_found)
    assert widths_found
    widths = widths_found[0]
    old = shape.layers[0]
    mlp_alone = ratio * shape.layer_parameters(old) / (shape.neuron_parameters * old.intermediate)
    slack = 1.5 / old.intermediate + 2 / shape.layer_parameters(old)
    if mlp_alone <= 0.5 - slack:
        event("MLP alone")
        assert widths.heads == old.heads
        return
    # As many heads as possible stay: one option more and the MLPs would lose more than half, and more than the heads.
    options = [o[0] for o in head_options(shape, old)]
    lost = 1 - widths.heads / old.heads
    if widths.heads < old.heads:
        event("heads too")
        kept_more = options[options.index(widths.heads) - 1]
        smaller = dataclasses.replace(old, heads=kept_more, kv_heads=max(1, kept_more * old.kv_heads // old.heads))
        from_heads = shape.layer_parameters(old) - shape.layer_parameters(smaller)
        need = (ratio * shape.layer_parameters(old) - from_heads) / (shape.neuron_parameters * old.intermediate)
        assert need > max(0.5, 1 - kept_more / old.heads) - slack
    assert lost >= 0


def test_ratio_zero_changes_nothing() -> None:
    for shape in (model(), model(n=1100), model("qwen3", n=1025, kv_heads=1)):
        assert plan_widths(shape, config(ratio=0)) == shape.layers


def test_the_ratio_of_the_decoder_does_not_count_embeddings() -> None:
    shape = model(vocabulary=4000)
    ours, small = (plan_widths(shape, config(ratio=0.1, ratio_of=of)) for of in ("model", "decoder"))
    assert removed(shape, ours) == pytest.approx(0.1 * shape.parameters, abs=mlp_step(shape) / 2)
    assert removed(shape, small) == pytest.approx(0.1 * shape.decoder_parameters, abs=mlp_step(shape) / 2)
    assert removed(shape, ours) > 2 * removed(shape, small)


def test_the_largest_ratio_leaves_one_neuron_and_one_group() -> None:
    shape = model(vocabulary=20000)
    with pytest.raises(UsageError, match=r"--ratio 0.9 cannot be met: the largest that can .* of the model") as error:
        plan_widths(shape, config(ratio=0.9))
    (largest,) = named_ratios(error.value)
    widths = plan_widths(shape, config(ratio=largest))
    assert set(widths) == {LayerShape(1, 2, 1)}
    assert removed(shape, widths) == pytest.approx(largest * shape.parameters, abs=mlp_step(shape) / 2)


def test_a_ratio_between_two_reachable_ranges_names_both_ends() -> None:
    shape = model(n=4, heads=2, kv_heads=2, hidden=64, vocabulary=10, layers=1)
    with pytest.raises(UsageError, match="the nearest that can") as error:
        plan_widths(shape, config(ratio=0.3, ratio_of="decoder"))
    below, above = named_ratios(error.value)
    assert below < 0.3 < above
    for ratio in (below, above):
        plan_widths(shape, config(ratio=ratio, ratio_of="decoder"))


def test_attention_too_coarse_to_help_leaves_the_mlp_to_meet_the_ratio() -> None:
    # Half the MLP is 19 % of the layer, dropping one of two groups 31 %: 0.25 is in between, and the MLP can give it.
    shape = model(n=52, heads=2, kv_heads=2, hidden=64, layers=1)
    widths = plan_widths(shape, config(ratio=0.25, ratio_of="decoder"))
    assert widths[0].heads == 2
    assert removed(shape, widths) == pytest.approx(0.25 * shape.decoder_parameters, abs=mlp_step(shape) / 2)


@pytest.mark.parametrize("n", [1023, 1024, 2752, 11008])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.999])
def test_mlp_widths_are_multiples_of_128_where_layers_are_wide(n: int, fraction: float) -> None:
    width = plan_widths(model(n=n), config(mlp_ratio=fraction))[0].intermediate
    multiple = 1 if n < 1024 else 128
    assert width % multiple == 0
    assert abs(width - (1 - fraction) * n) <= max(multiple / 2, 128 - (1 - fraction) * n if multiple > 1 else 0)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 3000), kept=st.floats(0, 1), multiple_of=st.one_of(st.none(), st.integers(1, 4000)))
def test_snapping_finds_the_nearest_legal_width(n: int, kept: float, multiple_of: int | None) -> None:
    multiple = width_multiple(n, multiple_of)
    legal = [w for w in range(1, n + 1) if w == n or w % multiple == 0]
    assert abs(snap(n, kept, multiple) - kept * n) == min(abs(w - kept * n) for w in legal)
    assert snap(n, kept, multiple) in legal


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 0.8939806, 0.92])
def test_layers_of_different_widths_are_not_rounded_away_from_the_ratio(ratio: float) -> None:
    shape = model(heads=1, kv_heads=1, head_dim=4)
    shape = dataclasses.replace(shape, layers=tuple(LayerShape(n, 1, 1) for n in (236, 131, 1684, 1769)))
    widths = plan_widths(shape, config(ratio=ratio, ratio_of="decoder", attention_ratio=0.0, multiple_of=64))
    check_legal(shape, widths, 64)
    assert abs(removed(shape, widths) - ratio * shape.decoder_parameters) <= mlp_step(shape, 64) / 2 + 1


def test_fractions_of_parts_override_the_planner() -> None:
    shape = model()
    assert set(plan_widths(shape, config(mlp_ratio=0.5))) == {LayerShape(86, 8, 4)}
    assert set(plan_widths(shape, config(attention_ratio=0.5))) == {LayerShape(172, 4, 2)}
    assert set(plan_widths(shape, config(mlp_ratio=0.25, attention_ratio=0.25))) == {LayerShape(129, 6, 3)}
    assert set(plan_widths(shape, config(mlp_ratio=0, attention_ratio=0))) == set(shape.layers)


@pytest.mark.parametrize("attention", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("ratio", [0.2, 0.35])
def test_a_fixed_share_of_heads_leaves_the_rest_to_the_mlps(attention: float, ratio: float) -> None:
    shape = model()
    widths = plan_widths(shape, config(ratio=ratio, attention_ratio=attention))
    assert {x.heads for x in widths} == {round(8 * (1 - attention))}
    assert removed(shape, widths) == pytest.approx(ratio * shape.parameters, abs=mlp_step(shape) / 2 + 1)


@pytest.mark.parametrize("mlp", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("ratio", [0.12, 0.2, 0.3])
def test_a_fixed_share_of_neurons_leaves_the_rest_to_the_heads(mlp: float, ratio: float) -> None:
    shape = model(heads=16, kv_heads=16)
    group = 4 * 64 * 4 * 5
    widths, named = try_plan(shape, config(ratio=ratio, mlp_ratio=mlp))
    if widths is None:
        assert all(plan_widths(shape, config(ratio=value, mlp_ratio=mlp)) for value in named)
        return
    assert {x.intermediate for x in widths} == {snap(172, 1 - mlp, 1)}
    assert removed(shape, widths) == pytest.approx(ratio * shape.parameters, abs=group / 2 + 1)


def test_a_fixed_share_of_neurons_above_the_ratio_is_refused_with_the_smallest_that_can() -> None:
    shape = model()
    with pytest.raises(UsageError, match="the smallest that can") as error:
        plan_widths(shape, config(ratio=0.05, mlp_ratio=0.9))
    (smallest,) = named_ratios(error.value)
    assert set(plan_widths(shape, config(ratio=smallest, mlp_ratio=0.9))) == {LayerShape(17, 8, 4)}


def test_three_ratios_contradict_one_another() -> None:
    with pytest.raises(UsageError, match="--ratio, --mlp-ratio and --attention-ratio"):
        plan_widths(model(), config(ratio=0.2, mlp_ratio=0.2, attention_ratio=0.2))


def test_layers_of_the_recipe_are_pinned_and_the_others_meet_the_ratio() -> None:
    shape = model(layers=6)
    recipe = {1: LayerOverride(mlp=0.5), 4: LayerOverride(mlp=0.0, attention=0.5)}
    widths = plan_widths(shape, config(ratio=0.2, layers=recipe))
    assert widths[1] == LayerShape(86, 8, 4)
    assert widths[4] == LayerShape(172, 4, 2)
    assert len({widths[i] for i in (0, 2, 3, 5)}) == 1
    assert removed(shape, widths) == pytest.approx(0.2 * shape.parameters, abs=4 * shape.neuron_parameters / 2 + 1)


def test_a_recipe_without_ratio_leaves_the_other_layers_alone() -> None:
    shape = model(layers=4)
    widths = plan_widths(shape, config(layers={2: LayerOverride(mlp=0.25)}))
    assert widths == (*shape.layers[:2], LayerShape(129, 8, 4), shape.layers[3])
    widths = plan_widths(shape, config(layers={2: LayerOverride(attention=0.25)}, mlp_ratio=0.5))
    assert widths[2] == LayerShape(86, 6, 3)
    assert widths[0] == LayerShape(86, 8, 4)


def test_a_recipe_that_pins_everything_meets_its_own_ratio_or_none() -> None:
    shape = model(layers=2)
    recipe = dict.fromkeys(range(2), LayerOverride(mlp=0.5))
    own = removed(shape, plan_widths(shape, config(layers=recipe))) / shape.parameters
    assert {x.intermediate for x in plan_widths(shape, config(ratio=own, layers=recipe))} == {86}
    for ratio in (own / 2, own * 1.5):
        with pytest.raises(UsageError, match="cannot be met") as error:
            plan_widths(shape, config(ratio=ratio, layers=recipe))
        for named in named_ratios(error.value):
            assert named * shape.parameters == pytest.approx(own * shape.parameters, abs=2)


def test_a_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="layer 5 of the recipe does not exist; the model has 5 layers"):
        plan_widths(model(), config(layers={5: LayerOverride(mlp=0.5)}))


def test_head_options_keep_groups_whole() -> None:
    assert head_options(model(heads=8, kv_heads=4), LayerShape(172, 8, 4)) == [(8, 4), (6, 3), (4, 2), (2, 1)]
    assert head_options(model(heads=4, kv_heads=4), LayerShape(172, 4, 4)) == [(4, 4), (3, 3), (2, 2), (1, 1)]


def test_one_kv_head_gives_query_heads() -> None:
    shape = model(heads=4, kv_heads=1)
    assert head_options(shape, shape.layers[0]) == [(4, 1), (3, 1), (2, 1), (1, 1)]
    assert set(plan_widths(shape, config(attention_ratio=0.5))) == {LayerShape(172, 2, 1)}


def test_a_biased_llama_keeps_head_counts_its_own_config_accepts() -> None:
    shape = model(heads=8, kv_heads=8, mlp_bias=True)
    assert [o[0] for o in head_options(shape, shape.layers[0])] == [8, 4, 2, 1]
    qwen = model("qwen2", heads=8, kv_heads=8, qkv_bias=True)
    assert [o[0] for o in head_options(qwen, qwen.layers[0])] == [8, 7, 6, 5, 4, 3, 2, 1]


def plan_of(raw: dict[str, Any], **options: Any) -> FoldPlan:
    return make_plan(shape_of(raw), {}, config(**options))


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5])
@pytest.mark.parametrize("name", REAL)
def test_real_models_get_widths_their_config_class_accepts(name: str, ratio: float) -> None:
    raw = REAL[name]
    plan = plan_of(raw, ratio=ratio)
    shape, layer = plan.before, plan.after.layers[0]
    check_legal(shape, plan.after.layers)
    assert plan.after.uniform
    assert layer.intermediate % 128 == 0
    assert abs(plan.ratio - ratio) * shape.parameters <= mlp_step(shape) / 2 + 1
    written = CONFIG_MAPPING[plan.written_as.model_type](
        hidden_size=shape.hidden,
        intermediate_size=layer.intermediate,
        num_attention_heads=layer.heads,
        num_key_value_heads=layer.kv_heads,
        head_dim=shape.head_dim,
    )
    assert written.num_attention_heads % written.num_key_value_heads == 0
    needs_fallback = raw["model_type"] == "llama" and shape.hidden % layer.heads != 0
    assert plan.written_as.model_type == ("mistral" if needs_fallback else raw["model_type"])


@pytest.mark.parametrize("name", ["llama-7b", "llama-2-13b", "llama-3-8b"])
def test_the_fallback_is_needed_where_llama_refuses(name: str) -> None:
    raw = REAL[name]
    plan = plan_of(raw, mlp_ratio=0.2, attention_ratio=0.125)
    layer = plan.after.layers[0]
    assert plan.before.hidden % layer.heads
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        CONFIG_MAPPING["llama"](hidden_size=plan.before.hidden, num_attention_heads=layer.heads, head_dim=128)
    assert plan.written_as.model_type == "mistral"
    biased = plan_of({**raw, "attention_bias": True}, mlp_ratio=0.2, attention_ratio=0.125)
    assert biased.written_as.model_type == "llama"
    assert biased.before.hidden % biased.after.layers[0].heads == 0


@given(
    shape=models(), ratio=st.floats(0, 0.9), devices=st.integers(1, 8), multiple_of=st.sampled_from([None, 1, 7, 64])
)
def test_tensor_parallel_devices_share_every_layer_evenly(
    shape: ModelShape, ratio: float, devices: int, multiple_of: int | None
) -> None:
    config = FoldConfig("m", ratio=ratio, tensor_parallel=devices, multiple_of=multiple_of)
    try:
        widths = plan_widths(shape, config)
    except UsageError:
        event("refused")
        return
    event("planned")
    for before, after in zip(shape.layers, widths, strict=True):
        assert after.intermediate % devices == 0
        assert after.heads % devices == 0
        assert after.kv_heads % devices == 0 or (before.kv_heads < devices and devices % after.kv_heads == 0)


def test_tensor_parallel_moves_widths_to_the_next_that_divides() -> None:
    shape = model(heads=8, kv_heads=8)
    layer = LayerShape(172, 8, 8)
    assert head_options(shape, layer, Rules(None, 4)) == [(8, 8), (4, 4)]
    assert Rules(1, 8).width(172, 1.0) == 168
    assert Rules(None, 8).width(11_008, 0.7) % 128 == 0
    assert Rules(48, 32).width(11_008, 0.7) % 96 == 0


def test_tensor_parallel_that_divides_nothing_is_refused() -> None:
    shape = model(heads=4, kv_heads=4)
    with pytest.raises(UsageError, match="--tensor-parallel 5 does not divide layer 0"):
        plan_widths(shape, FoldConfig("m", mlp_ratio=0.5, tensor_parallel=5))
