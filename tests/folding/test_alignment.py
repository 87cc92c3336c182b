import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llmfold.folding.alignment import HeadGroups, PairwiseAligner, balance
from llmfold.folding.grouping import Groups
from llmfold.folding.heads import _store, aligned_views, head_groups, joined, unit_views
from llmfold.models import LayerShape, ModelShape

from .builders import (
    PLAIN_HEADS,
    generator,
    layer_output,
    move_group,
    random_gauge,
    random_layer,
    relative,
    take_groups,
    wider,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 8}),
    "llama-four-queries": ("llama", {"num_key_value_heads": 2}),
    "llama-biases": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
}
Layer = tuple[dict[str, Any], ModelShape, dict[str, Tensor]]


def layer_of(case: str, seed: int = 0) -> Layer:
    family, fields = CASES[case]
    return random_layer(family, seed, **fields)


def groups_of(weights: dict[str, Tensor], shape: ModelShape, layer: LayerShape | None = None) -> HeadGroups:
    layer = layer or shape.layers[0]
    return head_groups(
        PLAIN_HEADS, unit_views(PLAIN_HEADS, weights, layer, layer.kv_heads), layer, qk_norm=shape.architecture.qk_norm
    )


def aligner_of(weights: dict[str, Tensor], shape: ModelShape, layer: LayerShape | None = None) -> PairwiseAligner:
    return PairwiseAligner(balance(groups_of(weights, shape, layer)))


def stored(weights: dict[str, Tensor], layer: LayerShape, groups: HeadGroups) -> dict[str, Tensor]:
    """The layer whose groups are ``groups``, written back through the folder's own way."""
    views = {role: view.clone() for role, view in unit_views(PLAIN_HEADS, weights, layer, layer.kv_heads).items()}
    for unit in range(len(groups)):
        one = HeadGroups(groups.q[[unit]], groups.k[[unit]], groups.v[[unit]], groups.o[[unit]], groups.qk_norm)
        _store(PLAIN_HEADS, views, unit, one)
    out = dict(weights)
    for role, view in views.items():
        out[role] = joined(PLAIN_HEADS, role, view)
    return out


def moved(
    weights: dict[str, Tensor], shape: ModelShape, layer: LayerShape, seed: int, **kind: bool
) -> dict[str, Tensor]:
    """Every group moved by a gauge of its own."""
    norm = shape.architecture.qk_norm
    for group in range(layer.kv_heads):
        gauge = random_gauge(shape.head_dim, layer.group_size, seed + group, qk_norm=norm, **kind)
        weights = move_group(weights, layer, shape.head_dim, group, gauge)
    return weights


def flat(groups: HeadGroups) -> Tensor:
    return torch.cat([t.flatten(1) for t in (groups.q, groups.k, groups.v, groups.o)], 1)


@pytest.fixture(params=CASES)
def layer(request: pytest.FixtureRequest) -> Layer:
    return layer_of(request.param)


def test_the_gauge_moves_of_these_tests_change_no_output(layer: Layer) -> None:
    raw, shape, weights = layer
    other = moved(weights, shape, shape.layers[0], 3)
    # Under RMSNorm of queries a change of scale is seen by its epsilon only.
    tolerance = 1e-4 if shape.architecture.qk_norm else 1e-6
    assert relative(layer_output(raw, shape, other), layer_output(raw, shape, weights)) < tolerance
    for role in ("q", "k", "v", "o"):
        assert relative(other[role], weights[role]) > 0.1


def test_pair_signs_are_a_true_symmetry_of_query_and_key_norms() -> None:
    raw, shape, weights = layer_of("qwen3-biases")
    other = moved(weights, shape, shape.layers[0], 3, rescale=False)
    assert relative(layer_output(raw, shape, other), layer_output(raw, shape, weights)) < 1e-6
    # A rotation of a pair, or the sign of one half of it, is not: each half has its own gain, and RoPE mixes them.
    for roles in (("q", "k"), ("q",)):
        flipped = dict(weights)
        for role in roles:
            sign = torch.ones(8, dtype=torch.float64)
            sign[0] = -1
            for name in (role, role + "_bias"):
                rows = weights[name].view(-1, 8, *weights[name].shape[1:])
                flipped[name] = (rows * sign.view(8, *[1] * (rows.ndim - 2))).view(weights[name].shape)
        assert relative(layer_output(raw, shape, flipped), layer_output(raw, shape, weights)) > 1e-3


def test_balancing_changes_no_output_and_balances(layer: Layer) -> None:
    raw, shape, weights = layer
    plain = moved(weights, shape, shape.layers[0], 5)
    groups = balance(groups_of(plain, shape))
    changed = stored(plain, shape.layers[0], groups)
    tolerance = 1e-4 if shape.architecture.qk_norm else 1e-10
    assert relative(layer_output(raw, shape, changed), layer_output(raw, shape, plain)) < tolerance
    r = shape.layers[0].group_size
    v, o = groups.v.square().sum((1, 2)), groups.o.square().sum((1, 2, 3)) / r
    assert torch.allclose(v, o)
    if shape.architecture.qk_norm:
        for heads in (groups.q.flatten(0, 1), groups.k):
            norms = heads.square().sum((1, 2))
            assert torch.allclose(norms, norms[:1].expand_as(norms))
    else:
        half = shape.head_dim // 2
        q = groups.q.square().sum((1, 3)) / r
        k = groups.k.square().sum(2)
        assert torch.allclose(q[:, :half] + q[:, half:], k[:, :half] + k[:, half:])


def test_turning_a_group_changes_no_output(layer: Layer) -> None:
    raw, shape, weights = layer
    aligner = aligner_of(weights, shape)
    turned = [aligner.turn(b, aligner.align(0, b)) for b in range(len(aligner.groups))]
    q, k, v, o = (torch.cat([getattr(t, name) for t in turned]) for name in ("q", "k", "v", "o"))
    joined = HeadGroups(q, k, v, o)
    changed = stored(weights, shape.layers[0], joined)
    # float32 angles of RoPE commute with the turn to rounding only.
    tolerance = 1e-4 if shape.architecture.qk_norm else 1e-6
    assert relative(layer_output(raw, shape, changed), layer_output(raw, shape, weights)) < tolerance


def test_gain_is_the_inner_product_with_the_turned_group(layer: Layer) -> None:
    _, shape, weights = layer
    aligner = aligner_of(weights, shape)
    rows = flat(aligner.groups)
    for a, b in itertools.product(range(len(rows)), repeat=2):
        found = aligner.align(a, b)
        turned = flat(aligner.turn(b, found))[0]
        assert found.gain == pytest.approx(float(rows[a] @ turned), rel=1e-9)
        assert float(turned.norm()) == pytest.approx(float(rows[b].norm()), rel=1e-9)
        assert sorted(found.heads.tolist()) == list(range(shape.layers[0].group_size))
        identity = torch.eye(shape.head_dim, dtype=torch.float64)
        assert torch.allclose(found.rotation @ found.rotation.T, identity, atol=1e-9)


def test_distances_are_symmetric_and_no_larger_than_without_turning(layer: Layer) -> None:
    _, shape, weights = layer
    aligner = aligner_of(weights, shape)
    found = aligner.distances()
    rows = flat(aligner.groups)
    assert torch.equal(found, found.T)
    assert not found.diagonal().any()
    unaligned = torch.cdist(rows, rows).square()
    off = ~torch.eye(len(found), dtype=torch.bool)
    assert bool((found[off] <= unaligned[off] * (1 + 1e-9)).all())
    assert bool((found[off] < unaligned[off] * 0.99).any())


def test_no_random_turn_comes_closer(layer: Layer) -> None:
    _, shape, weights = layer
    aligner = aligner_of(weights, shape)
    best = aligner.align(0, 1)
    dim, norm = shape.head_dim, shape.architecture.qk_norm
    for seed in range(30):
        source = generator(seed)
        if norm:
            angles = torch.where(torch.rand(dim // 2, generator=source) < 0.5, torch.pi, 0.0).double()
        else:
            angles = best.angles + 0.2 * torch.randn(dim // 2, generator=source, dtype=torch.float64)
        skew = 0.1 * torch.randn(dim, dim, generator=source, dtype=torch.float64)
        rotation = torch.matrix_exp(skew - skew.T) @ best.rotation
        other = dataclasses.replace(best, angles=angles, rotation=rotation)
        turned = flat(aligner.turn(1, other))[0]
        assert float(flat(aligner.groups)[0] @ turned) <= best.gain * (1 + 1e-9)


@pytest.mark.parametrize("permute", [False, True])
def test_distances_vanish_between_gauge_copies_and_do_not_see_gauges(layer: Layer, permute: bool) -> None:
    _, shape, weights = layer
    before = shape.layers[0]
    plain = aligner_of(weights, shape).distances()
    doubled = take_groups(weights, before, shape.head_dim, [*range(before.kv_heads), 1, 0])
    wide = wider(before, before.kv_heads + 2)
    found = aligner_of(moved(doubled, shape, wide, 11, permute=permute), shape, wide).distances()
    scale = float(plain.max())
    copies = [(1, before.kv_heads), (0, before.kv_heads + 1)]
    assert max(float(found[a, b]) for a, b in copies) < 1e-9 * scale
    if not shape.architecture.qk_norm and (before.group_size <= 3 or not permute):
        assert torch.allclose(found[: before.kv_heads, : before.kv_heads], plain, atol=1e-9 * scale)


def test_near_copies_of_permuted_heads_are_found_at_their_true_distance() -> None:
    _, shape, weights = layer_of("llama-four-queries")
    before = shape.layers[0]
    wide = wider(before, 3)
    doubled = take_groups(weights, before, shape.head_dim, [0, 1, 0])
    noise = {
        role: t + 1e-2 * torch.randn(t.shape, generator=generator(2), dtype=t.dtype) for role, t in doubled.items()
    }
    shuffled = moved(noise, shape, wide, 4, rescale=False, permute=True)
    straight = moved(noise, shape, wide, 4, rescale=False, permute=False)
    found, expected = (float(aligner_of(w, shape, wide).distances()[0, 2]) for w in (shuffled, straight))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found < 0.05 * float(aligner_of(shuffled, shape, wide).distances()[0, 1])


@pytest.mark.parametrize("part", ["q", "k", "v", "o"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_groups_with_a_zero_part_give_no_nan(part: str, qk_norm: bool) -> None:
    _, shape, weights = layer_of("qwen3" if qk_norm else "llama-gqa")
    groups = groups_of(weights, shape)
    getattr(groups, part)[1] = 0
    aligner = PairwiseAligner(balance(groups))
    assert bool(aligner.distances().isfinite().all())
    for a, b in ((0, 1), (1, 0), (1, 1)):
        turned = aligner.turn(b, aligner.align(a, b))
        assert all(bool(t.isfinite().all()) for t in (turned.q, turned.k, turned.v, turned.o))


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.float()], ids=["float64", "float32"])
def test_group_dtypes_are_kept(change: Callable[[Tensor], Tensor]) -> None:
    _, shape, weights = layer_of("qwen2")
    weights = {role: change(t) for role, t in weights.items()}
    aligner = aligner_of(weights, shape)
    turned = aligner.turn(1, aligner.align(0, 1))
    assert turned.q.dtype == turned.o.dtype == weights["q"].dtype
    assert aligner.distances().dtype == weights["q"].dtype


@pytest.mark.parametrize("seed", range(6))
def test_permuted_copies_of_many_query_heads_are_matched(seed: int) -> None:
    _, shape, weights = random_layer("llama", seed, num_attention_heads=16, num_key_value_heads=2)
    before, wide = shape.layers[0], wider(shape.layers[0], 4)
    doubled = take_groups(weights, before, shape.head_dim, [0, 1, 0, 1])
    found = aligner_of(moved(doubled, shape, wide, 10 * seed), shape, wide).distances()
    assert max(float(found[0, 2]), float(found[1, 3])) < 1e-9 * float(found[0, 1])


@pytest.mark.parametrize("case", ["llama-gqa", "qwen2", "qwen3"])
def test_members_are_turned_onto_the_medoid_and_lone_groups_stay(case: str) -> None:
    _, shape, weights = layer_of(case, seed=4)
    layer = shape.layers[0]
    views = unit_views(PLAIN_HEADS, weights, layer, layer.kv_heads)
    aligner = aligner_of(weights, shape)
    distances = aligner.distances()
    turned = aligned_views(PLAIN_HEADS, views, Groups(torch.tensor([0, 1, 0, 0])), aligner, distances)
    members = [0, 2, 3]
    medoid = min(members, key=lambda unit: sum(float(distances[unit, other]) for other in members))
    assert all(torch.equal(turned[role][1], views[role][1]) for role in views)
    groups = head_groups(PLAIN_HEADS, turned, layer, qk_norm=shape.architecture.qk_norm)
    now, balanced = flat(groups), flat(aligner.groups)
    assert torch.allclose(now[medoid], balanced[medoid], atol=1e-9)
    for unit in members:
        expected = float(distances[medoid, unit])
        assert float((now[unit] - now[medoid]).square().sum()) == pytest.approx(expected, abs=1e-9)
    assert all(not torch.equal(turned[role], views[role]) for role in ("q", "v", "o"))


@pytest.mark.parametrize("heads", [4, 8, 12, 16])
def test_matchings_of_query_heads_are_best_up_to_three_and_good_beyond(heads: int) -> None:
    shares, unmatched = [], []
    for seed in range(4):
        fields: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": 4, "hidden_size": 48}
        _, shape, weights = random_layer("llama", seed, **fields)
        aligner, r = aligner_of(weights, shape), heads // 4
        for a, b in itertools.combinations(range(4), 2):
            every = [aligner._solve(a, b, torch.tensor(order)).gain for order in itertools.permutations(range(r))]
            shares.append(aligner.align(a, b).gain / max(every))
            unmatched.append(every[0] / max(every))
    assert max(shares) <= 1 + 1e-12
    if heads <= 12:
        assert min(shares) >= 1 - 1e-12
    else:
        mean = sum(shares) / len(shares)
        assert mean > 0.88
        assert mean > sum(unmatched) / len(unmatched) + 0.05
