from dataclasses import replace
from typing import Any

import pytest
import torch
from shapes import shape_with_stock
from torch import Tensor

from llmfold.folding.grouping import Groups
from llmfold.folding.heads import merge_heads, unit_rows, unit_views
from llmfold.folding.layer import MergeOptions, fold_layer
from llmfold.folding.variance import variance_scale
from llmfold.models import LayerShape, ModelShape

from .builders import (
    PLAIN_HEADS,
    generator,
    layer_output,
    layer_weights,
    model_logits,
    move_group,
    random_gauge,
    random_layer,
    raw_config,
    relative,
    state_of,
    stock_model,
    take_groups,
    take_query_heads,
    wider,
    with_layer,
    with_neuron_copies,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 8}),
    "llama-four-queries": ("llama", {"num_key_value_heads": 2}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
}
MQA: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 1}),
    "llama-biases": ("llama", {"num_key_value_heads": 1, "attention_bias": True}),
    "qwen2": ("qwen2", {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"num_key_value_heads": 1}),
}
CLUSTERS = ["ward", "kmeans", "hartigan"]


def group_copies(
    weights: dict[str, Tensor], shape: ModelShape, copies: list[int], seed: int | None, **kind: bool
) -> tuple[dict[str, Tensor], LayerShape]:
    """Append copies of KV groups, each moved by a gauge of its own unless ``seed`` is None; shuffle all groups."""
    before = shape.layers[0]
    index = [*range(before.kv_heads), *copies]
    wide = wider(before, len(index))
    doubled = take_groups(weights, before, shape.head_dim, index)
    if seed is not None:
        for group in range(len(index)):
            norm = shape.architecture.qk_norm
            gauge = random_gauge(shape.head_dim, before.group_size, seed + group, qk_norm=norm, **kind)
            doubled = move_group(doubled, wide, shape.head_dim, group, gauge)
    order = torch.randperm(len(index), generator=generator(1)).tolist()
    return take_groups(doubled, wide, shape.head_dim, order), wide


def fold(
    weights: dict[str, Tensor], shape: ModelShape, before: LayerShape, after: LayerShape, **options: Any
) -> dict[str, Tensor]:
    folded, _ = next(fold_layer(weights, shape, before, [after], MergeOptions(**options)))
    sizes = dict(shape.layer_roles(after))
    assert {role: tuple(t.shape) for role, t in folded.items()} == sizes
    return folded


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("case", CASES)
def test_exact_duplicates_of_kv_groups_fold_away(case: str, align: str, cluster: str) -> None:
    family, fields = CASES[case]
    raw, shape, weights = random_layer(family, dtype=torch.float32, **fields)
    doubled, wide = group_copies(weights, shape, [0, 0, 1], None)
    folded = fold(doubled, shape, wide, shape.layers[0], align=align, cluster=cluster)
    expected = layer_output(raw, shape, doubled, wide)
    assert relative(layer_output(raw, shape, folded), expected) < (1e-4 if shape.architecture.qk_norm else 1e-5)


@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_duplicates_in_another_gauge_fold_away_once_aligned(case: str, permute: bool, rescale: bool) -> None:
    family, fields = CASES[case]
    raw, shape, weights = random_layer(family, dtype=torch.float32, **fields)
    doubled, wide = group_copies(weights, shape, [0, 0, 1], 20, permute=permute, rescale=rescale)
    expected = layer_output(raw, shape, doubled, wide)
    folded = fold(doubled, shape, wide, shape.layers[0], align="gauge")
    # A whole-head scale of queries is free up to the epsilon of their norm only.
    tolerance = 1e-4 if shape.architecture.qk_norm and rescale else 1e-5
    assert relative(layer_output(raw, shape, folded), expected) < tolerance
    unaligned = fold(doubled, shape, wide, shape.layers[0], align="none")
    assert relative(layer_output(raw, shape, unaligned), expected) > 1e-2


@pytest.mark.parametrize("cluster", ["kmeans", "hartigan"])
def test_aligned_duplicates_fold_away_under_every_clustering(cluster: str) -> None:
    raw, shape, weights = random_layer("qwen2", dtype=torch.float32)
    doubled, wide = group_copies(weights, shape, [0, 0, 1], 20)
    folded = fold(doubled, shape, wide, shape.layers[0], align="gauge", cluster=cluster)
    assert relative(layer_output(raw, shape, folded), layer_output(raw, shape, doubled, wide)) < 1e-5


def test_variance_repair_leaves_gauge_copies_alone() -> None:
    raw, shape, weights = random_layer("qwen2", dtype=torch.float32)
    doubled, wide = group_copies(weights, shape, [0, 0, 1], 20)
    folded = fold(doubled, shape, wide, shape.layers[0], align="gauge", repair="variance")
    assert relative(layer_output(raw, shape, folded), layer_output(raw, shape, doubled, wide)) < 1e-5


@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("case", MQA)
def test_duplicate_query_heads_of_one_kv_head_fold_away(case: str, align: str) -> None:
    family, fields = MQA[case]
    raw, shape, weights = random_layer(family, dtype=torch.float32, **fields)
    index = [3, 0, 1, 2, 3, 4, 5, 6, 7, 0, 3]
    doubled, wide = take_query_heads(weights, shape.head_dim, index), replace(shape.layers[0], heads=len(index))
    folded = fold(doubled, shape, wide, shape.layers[0], align=align)
    assert relative(layer_output(raw, shape, folded), layer_output(raw, shape, doubled, wide)) < 1e-5
    assert all(folded[role] is weights[role] for role in ("k", "v"))


@pytest.mark.parametrize("case", ["llama-gqa", "llama-biases", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("align", ["none", "gauge"])
def test_a_model_with_duplicates_keeps_its_logits(case: str, align: str) -> None:
    family, fields = CASES[case]
    raw = raw_config(family, **fields)
    shape, tokens = shape_with_stock(raw), torch.arange(24).view(2, 12) * 5 % 48
    narrow = state_of(stock_model(raw))
    widened, before, folded = dict(narrow), shape, dict(narrow)
    for index in range(len(shape.layers)):
        seed = 20 + 9 * index if align == "gauge" else None
        doubled, wide = group_copies(
            layer_weights(narrow, shape, index), shape, [2, 1], seed, rescale=family != "qwen3"
        )
        doubled = with_neuron_copies(doubled, [4, 9, 9], [1.0, 1.0, 1.0] if seed is None else [-2.0, 0.3, 5.0])
        wide = replace(wide, intermediate=43)
        before = replace(before, layers=(*before.layers[:index], wide, *before.layers[index + 1 :]))
        widened = with_layer(widened, index, doubled)
        folded = with_layer(folded, index, fold(doubled, shape, wide, shape.layers[index], align=align))
    expected = model_logits(raw, before, widened, tokens)
    assert relative(model_logits(raw, shape, folded, tokens), expected) < 1e-5
    assert relative(model_logits(raw, shape, narrow, tokens), expected) > 1e-2


@pytest.mark.parametrize("repair", ["none", "variance"])
@pytest.mark.parametrize("case", ["llama-gqa", "llama-mha", "qwen2", "qwen3"])
def test_changing_gauges_changes_nothing_in_an_aligned_fold(case: str, repair: str) -> None:
    family, fields = CASES[case]
    raw, shape, weights = random_layer(family, **fields)
    before = shape.layers[0]
    after = wider(before, before.kv_heads - 1)
    norm = shape.architecture.qk_norm
    moved = weights
    for group in range(before.kv_heads):
        gauge = random_gauge(shape.head_dim, before.group_size, group, qk_norm=norm, rescale=not norm, permute=False)
        moved = move_group(moved, before, shape.head_dim, group, gauge)
    folded = [fold(w, shape, before, after, align="gauge", repair=repair) for w in (weights, moved)]
    outputs = [layer_output(raw, shape, w, after) for w in folded]
    assert relative(outputs[1], outputs[0]) < 1e-5
    plain = [layer_output(raw, shape, fold(w, shape, before, after, align="none"), after) for w in (weights, moved)]
    assert relative(plain[1], plain[0]) > 1e-2


@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("case", ["llama-gqa", "llama-mha", "qwen2", "qwen3"])
def test_order_of_groups_does_not_matter(case: str, align: str) -> None:
    family, fields = CASES[case]
    raw, shape, weights = random_layer(family, **fields)
    before = shape.layers[0]
    after = wider(before, before.kv_heads - 2)
    order = torch.randperm(before.kv_heads, generator=generator(9)).tolist()
    shuffled = take_groups(weights, before, shape.head_dim, order)
    assert relative(layer_output(raw, shape, shuffled), layer_output(raw, shape, weights)) < 1e-10
    found = [layer_output(raw, shape, fold(w, shape, before, after, align=align), after) for w in (weights, shuffled)]
    # Ties between equally central members aside, only the frame in which a cluster is averaged may differ.
    assert relative(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("case", ["llama-gqa", "llama-biases", "qwen2", "qwen3"])
def test_groups_that_stand_alone_keep_their_bits(case: str, align: str, dtype: torch.dtype) -> None:
    family, fields = CASES[case]
    _, shape, weights = random_layer(family, dtype=dtype, **fields)
    doubled, wide = group_copies(weights, shape, [2], 20 if align == "gauge" else None, rescale=False)
    folded = fold(doubled, shape, wide, shape.layers[0], align=align, repair="variance")
    assert {t.dtype for t in folded.values()} == {dtype}
    old = torch.cat([r.float() for r in unit_rows(unit_views(PLAIN_HEADS, doubled, wide, wide.kv_heads))], 1)
    new = torch.cat(
        [r.float() for r in unit_rows(unit_views(PLAIN_HEADS, folded, shape.layers[0], shape.layers[0].kv_heads))], 1
    )
    kept = [int((old == row).all(1).sum()) for row in new]
    # Of bit-equal copies the mean and, in one group, the sum over o differ from either.
    assert kept.count(1) == shape.layers[0].kv_heads - 1
    untouched = [role for role in folded if role not in ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias")]
    assert all(folded[role] is doubled[role] for role in untouched)


def test_parts_whose_width_stays_keep_their_tensors() -> None:
    _, shape, weights = random_layer("llama", dtype=torch.bfloat16)
    before = shape.layers[0]
    folded, record = next(fold_layer(weights, shape, before, [before], MergeOptions()))
    assert all(folded[role] is weights[role] for role in weights)
    assert record.mlp is None
    assert record.attention is None
    only_mlp, record = next(fold_layer(weights, shape, before, [replace(before, intermediate=30)], MergeOptions()))
    assert {role for role in weights if only_mlp[role] is not weights[role]} == {"gate", "up", "down"}
    assert record.attention is None


def test_inputs_are_never_written_to() -> None:
    for case in ("llama-biases", "qwen3"):
        family, fields = CASES[case]
        _, shape, weights = random_layer(family, dtype=torch.float32, **fields)
        copies = {role: tensor.clone() for role, tensor in weights.items()}
        after = replace(wider(shape.layers[0], 2), intermediate=20)
        fold(weights, shape, shape.layers[0], after, align="gauge", repair="variance")
        assert all(torch.equal(weights[role], copies[role]) for role in weights)


@pytest.mark.parametrize("align", ["none", "gauge"])
def test_records_count_every_unit(align: str) -> None:
    _, shape, weights = random_layer("llama")
    before = shape.layers[0]
    after = replace(wider(before, 3), intermediate=29)
    _, record = next(fold_layer(weights, shape, before, [after], MergeOptions(align=align)))
    assert record.mlp is not None
    assert record.attention is not None
    for part, (old, new) in ((record.mlp, (40, 29)), (record.attention, (4, 3))):
        assert (part["before"], part["after"]) == (old, new)
        assert sum(part["cluster_sizes"].values()) == new
        assert sum(int(size) * count for size, count in part["cluster_sizes"].items()) == old
        assert part["inertia"] > 0
        assert (part["inertia_bound"] is None) == (align == "gauge")
    assert all(seconds >= 0 for seconds in record.seconds.values())


@pytest.mark.parametrize("align", ["none", "gauge"])
@pytest.mark.parametrize("repair", ["none", "variance"])
@pytest.mark.parametrize("case", ["llama-gqa", "qwen2", "qwen3"])
@pytest.mark.parametrize("part", ["q", "k", "v", "o", "all"])
def test_zero_heads_give_no_nan(case: str, part: str, repair: str, align: str) -> None:
    family, fields = CASES[case]
    raw, shape, weights = random_layer(family, dtype=torch.float32, **fields)
    roles = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias") if part == "all" else (part,)
    for role in roles:
        if role in weights:
            (weights[role].T if role == "o" else weights[role])[: len(weights["k"]) // 2] = 0
    after = wider(shape.layers[0], 2)
    folded = fold(weights, shape, shape.layers[0], after, align=align, repair=repair)
    assert all(bool(t.isfinite().all()) for t in folded.values())
    assert bool(layer_output(raw, shape, folded, after).isfinite().all())


def test_the_same_fold_twice_gives_the_same_bits_on_poisoned_memory() -> None:
    _, shape, weights = random_layer("qwen2", dtype=torch.bfloat16)
    after = replace(wider(shape.layers[0], 2), intermediate=20)
    memory: Any = torch.utils.deterministic
    for cluster in CLUSTERS:
        options = {"cluster": cluster, "align": "gauge", "repair": "variance", "seed": 3}
        first = fold(weights, shape, shape.layers[0], after, **options)
        state = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = True
        try:
            second = fold(weights, shape, shape.layers[0], after, **options)
        finally:
            torch.use_deterministic_algorithms(state[0])
            memory.fill_uninitialized_memory = state[1]
        assert all(torch.equal(first[role], second[role]) for role in first)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_heads_are_averaged_in_q_k_v_and_summed_in_o(kv_heads: int) -> None:
    _, shape, weights = random_layer("qwen2", num_key_value_heads=kv_heads)
    layer, dim = shape.layers[0], shape.head_dim
    units = 8 if kv_heads == 1 else 4
    labels = torch.arange(units) // 2
    merged = merge_heads(PLAIN_HEADS, weights, unit_views(PLAIN_HEADS, weights, layer, units), Groups(labels))
    for role in ("q", "q_bias") if kv_heads == 1 else ("q", "k", "v", "q_bias", "k_bias", "v_bias"):
        rest = weights[role].shape[1:]
        expected = weights[role].view(units // 2, 2, -1, *rest).mean(1).flatten(0, 1)
        assert torch.allclose(merged[role], expected)
    o = weights["o"].view(-1, units // 2, 2, 8 // units * dim).sum(2).flatten(1)
    assert torch.allclose(merged["o"], o)
    assert merged["o"].is_contiguous()


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_variance_repair_of_heads_scales_values_alone(kv_heads: int) -> None:
    _, shape, weights = random_layer("qwen2", num_key_value_heads=kv_heads)
    before = shape.layers[0]
    after = replace(before, heads=5) if kv_heads == 1 else wider(before, 2)
    plain, repaired = (fold(weights, shape, before, after, repair=repair) for repair in ("none", "variance"))
    changed = {role for role in plain if not torch.equal(plain[role], repaired[role])}
    assert changed == ({"o"} if kv_heads == 1 else {"v", "v_bias"})
    if kv_heads == 4:
        factor = (repaired["v"] / plain["v"]).view(2, -1)
        assert torch.allclose(factor, factor[:, :1].expand_as(factor))
        assert torch.allclose((repaired["v_bias"] / plain["v_bias"]).view(2, -1), factor[:, :1].expand(2, 8))
        assert bool((factor >= 1).all())
        assert bool((factor > 1.1).any())


def test_variance_repair_of_neurons_scales_up_rows_alone() -> None:
    _, shape, weights = random_layer("llama", mlp_bias=True)
    before = shape.layers[0]
    after = replace(before, intermediate=20)
    plain, repaired = (fold(weights, shape, before, after, repair=repair) for repair in ("none", "variance"))
    assert {role for role in plain if not torch.equal(plain[role], repaired[role])} == {"up", "up_bias"}
    factor = repaired["up"] / plain["up"]
    assert torch.allclose(factor, factor[:, :1].expand_as(factor))
    assert torch.allclose(repaired["up_bias"] / plain["up_bias"], factor[:, 0])


def test_variance_of_aligned_heads_is_measured_after_alignment() -> None:
    _, shape, weights = random_layer("llama")
    doubled, wide = group_copies(weights, shape, [0], 20)
    views = unit_views(PLAIN_HEADS, doubled, wide, wide.kv_heads)
    assert float(variance_scale(unit_rows(views), Groups(torch.zeros(5, dtype=torch.int64)))) > 1.2
    plain, repaired = (
        fold(doubled, shape, wide, shape.layers[0], align="gauge", repair=repair) for repair in ("none", "variance")
    )
    assert torch.allclose(plain["v"], repaired["v"], rtol=1e-6)
