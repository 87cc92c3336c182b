import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmfold.checkpoint import ShardWriter, TensorSpec, plan_shards
from llmfold.errors import OutputError, UsageError

from .builders import write_config

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def specs(*sizes: int) -> list[TensorSpec]:
    return [TensorSpec(f"t{number}", F32, (size,)) for number, size in enumerate(sizes)]


def grouping(plan) -> list[list[str]]:
    return [[tensor.spec.name for tensor in shard.tensors] for shard in plan.shards]


def test_one_file_has_no_index():
    plan = plan_shards(specs(2, 3), 1000)
    assert [shard.name for shard in plan.shards] == ["model.safetensors"]
    assert plan.index is None
    assert plan.nbytes == len(plan.shards[0].header) + 20


def test_shards_fill_up_in_the_given_order():
    plan = plan_shards(specs(2, 3, 1, 5, 9, 1), 24)
    assert grouping(plan) == [["t0", "t1", "t2"], ["t3"], ["t4"], ["t5"]]
    assert plan.shards[2].name == "model-00003-of-00004.safetensors"


def test_the_index_lists_sizes_and_places():
    plan = plan_shards([TensorSpec("b", BF16, (3, 2)), TensorSpec("a", F32, (2,))], 12)
    assert plan.index is not None
    index = json.loads(plan.index)
    assert index["metadata"] == {"total_parameters": 8, "total_size": 20}
    assert list(index["weight_map"].items()) == [
        ("a", "model-00002-of-00002.safetensors"),
        ("b", "model-00001-of-00002.safetensors"),
    ]


def test_wide_dtypes_come_first_so_that_all_are_aligned():
    plan = plan_shards([TensorSpec("half", F16, (3,)), TensorSpec("x", F32, (1,)), TensorSpec("y", F32, (1,))], 1000)
    assert grouping(plan) == [["x", "y", "half"]]


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [TensorSpec("a", F32, (1,)), TensorSpec("a", F32, (2,))],
        [TensorSpec("__metadata__", F32, (1,))],
        [TensorSpec("a", torch.int8, (1,))],
    ],
)
def test_specs_that_cannot_be_written(bad):
    with pytest.raises(OutputError):
        plan_shards(bad, 100)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_must_be_positive(limit):
    with pytest.raises(UsageError, match="must be positive"):
        plan_shards(specs(1), limit)


SPECS = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(
            lambda name: name != "__metadata__"
        ),
        dtype=st.sampled_from([F32, BF16, F16]),
        shape=st.lists(st.integers(0, 6), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda spec: spec.name,
)


@settings(max_examples=100, deadline=None)
@given(SPECS, st.integers(1, 400))
def test_plans_are_whole_bounded_and_aligned(given, limit):
    plan = plan_shards(given, limit)
    assert set(plan.tensors) == {spec.name for spec in given}
    for shard in plan.shards:
        end = len(shard.header)
        assert end % 8 == 0
        for tensor in shard.tensors:
            assert tensor.offset == end
            assert tensor.offset % tensor.spec.dtype.itemsize == 0
            end += tensor.spec.nbytes
        assert end == shard.nbytes
        assert shard.nbytes - len(shard.header) <= limit or sum(t.spec.nbytes > 0 for t in shard.tensors) == 1
    position = {spec.name: number for number, spec in enumerate(given)}
    firsts = [min(position[name] for name in names) for names in grouping(plan)]
    lasts = [max(position[name] for name in names) for names in grouping(plan)]
    assert all(last < first for last, first in zip(lasts, firsts[1:], strict=False))


@settings(max_examples=40, deadline=None)
@given(SPECS, st.integers(1, 400), st.randoms(use_true_random=False))
def test_random_specs_round_trip(given, limit, random):
    tensors = {spec.name: torch.randn(spec.shape).to(spec.dtype) for spec in given}
    order = list(tensors)
    random.shuffle(order)
    plan = plan_shards(given, limit)
    with tempfile.TemporaryDirectory() as name:
        folder = write_config(Path(name))
        with ShardWriter(plan, folder) as writer:
            writer.create()
            for tensor in order:
                writer.write(tensor, tensors[tensor])
        loaded = {}
        for shard in plan.shards:
            loaded |= load_file(folder / shard.name)
        assert loaded.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded[key].dtype == tensor.dtype
            assert torch.equal(loaded[key], tensor)
