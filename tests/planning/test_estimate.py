"""What a fold of a known shape is expected to need."""

import sys
from typing import Any

import pytest
import torch

from llmfold.architectures import expected_tensors, shape_of
from llmfold.checkpoint import TensorInfo
from llmfold.config import FoldConfig
from llmfold.planning import FoldPlan, estimate, make_plan

module = sys.modules["llmfold.planning.estimate"]

GB = 1_000_000_000
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32_000,
}


def plan_of(**options: Any) -> FoldPlan:
    shape = shape_of(LLAMA_7B)
    dtype = torch.bfloat16
    tensors = {
        name: TensorInfo(name, dtype, size, torch.Size(size).numel() * dtype.itemsize, "")
        for name, size in expected_tensors(shape).items()
    }
    return make_plan(shape, tensors, FoldConfig("m", ratio=0.2, **options))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda size: monkeypatch.setattr(module, "available_memory", lambda: size)


@pytest.mark.parametrize("size", [10 * GB, 12 * GB, 15 * GB, 17 * GB, 24 * GB])
def test_sampling_never_needs_more_than_there_is(free: Any, size: int) -> None:
    free(size)
    assert module.memory_needed(plan_of(method="self")) <= size


def test_sampling_holds_the_model_where_there_is_room(free: Any) -> None:
    plan = plan_of(method="self", num_samples=1)
    free(10 * GB)
    short = module.memory_needed(plan)
    free(100 * GB)
    assert module.memory_needed(plan) > plan.bytes_before > short


def test_every_process_has_layers_of_its_own_and_one_samples(free: Any) -> None:
    free(64 * GB)
    sampling, paper = plan_of(method="self"), plan_of(method="paper", verify="off")
    assert module.memory_needed(sampling, 2) < 1.7 * module.memory_needed(sampling)
    assert module.memory_needed(paper, 2) == 2 * module.memory_needed(paper)


def test_disk_counts_what_waits_there() -> None:
    paper, pruner = plan_of(method="paper"), plan_of(method="llm-pruner", data="text")
    assert module.disk_needed(paper) == paper.bytes_after
    tokens = 4 * 11_008
    assert module.disk_needed(pruner) > pruner.bytes_after + 33 * tokens * 4096 * 4


def test_the_time_of_offloaded_sampling_is_that_of_the_disk(free: Any) -> None:
    plan = plan_of(method="self", refine=0)
    free(10 * GB)
    slow = estimate(plan).seconds
    free(64 * GB)
    assert slow > estimate(plan).seconds
