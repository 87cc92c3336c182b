"""What a fold of a known shape is expected to need."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fold, tiny_model

from llmfold import FoldReport, plan
from llmfold.checkpoint import TensorInfo
from llmfold.config import FoldConfig
from llmfold.effort import EFFORTS
from llmfold.methods import sampling_cost
from llmfold.methods.method import method_of
from llmfold.models import shape_of
from llmfold.pipeline.estimate import estimate
from llmfold.planning import FoldPlan, make_plan
from llmfold.planning.cost import Cost, Rates, Stage, forward_flops, passes
from llmfold.registry import method_facts, names

module = sys.modules["llmfold.pipeline.estimate"]

GB = 1_000_000_000
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
}


def plan_of(**options: Any) -> FoldPlan:
    shape = shape_of(LLAMA_7B)
    dtype = torch.bfloat16
    tensors = {name: TensorInfo(name, dtype, size, "") for name, size in shape.stored_tensors().items()}
    options = {"compute_dtype": "float32", **options}  # not what this machine multiplies natively
    return make_plan(shape, tensors, FoldConfig("m", ratio=0.2, **options))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda size: monkeypatch.setattr(sampling_cost, "available_memory", lambda: size)


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


def test_disk_counts_what_waits_there(free: Any) -> None:
    free(64 * GB)
    paper, pruner = plan_of(method="paper"), plan_of(method="llm-pruner", data="text")
    assert module.disk_needed(paper) == paper.bytes_after
    normal = EFFORTS["normal"]
    tokens = -(-normal.tokens_for(pruner.before) // (8 * normal.length)) * 8 * normal.length
    assert module.disk_needed(pruner) == pruner.bytes_after + 33 * tokens * 4096 * 4
    own = plan_of(method="self", num_samples=16, sequence_length=64)
    for processes in (1, 2, 3):
        states = max((2 * processes + 1) * 16, 33 * 8) * 64 * 4096 * 4  # around a layer, or earlier after all of them
        assert module.disk_needed(own, processes) == own.bytes_after + states


def test_the_time_of_offloaded_sampling_is_that_of_the_disk(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(method="self", refine=0)
    rates = Rates(large=1e12, skinny=1e12, double=1e11, memory=1e10, disk=1e9)
    monkeypatch.setattr(module, "machine_rates", lambda *_: rates)
    free(10 * GB)
    slow = estimate(plan).stages["sample"]
    free(64 * GB)
    assert slow > 2 * estimate(plan).stages["sample"]


def options_of(method: str, **options: Any) -> dict[str, Any]:
    return {"method": method, **({"data": "text"} if method_facts(method).needs_data else {}), **options}


def cost_of(method: str, **options: Any) -> Cost:
    return method_of(method).cost(plan_of(**options_of(method, **options)))


def test_every_method_says_what_it_costs() -> None:
    for method in names():
        found = cost_of(method)
        assert len({stage.name for stage in found.stages}) == len(found.stages)
        assert any(stage != Stage(stage.name) for stage in found.stages)


def test_work_grows_with_the_tokens(free: Any) -> None:
    free(100 * GB)
    one, two = (cost_of("self", num_samples=n, sequence_length=64, refine=10) for n in (64, 128))
    assert (two.tokens, two.length) == (2 * one.tokens, 64)
    for name in ("forward", "measure"):
        assert two.stage(name).large == 2 * one.stage(name).large
    assert two.stage("select").double == one.stage("select").double
    assert one.stage("select").large < two.stage("select").large < 2 * one.stage("select").large
    assert one.stage("widths").large < two.stage("widths").large < 2 * one.stage("widths").large
    assert two.states == 2 * one.states
    for method in ("wanda-sp", "llm-pruner"):
        one, two = (cost_of(method, num_samples=n, sequence_length=64) for n in (64, 128))
        assert max(stage.large for stage in two.stages) == 2 * max(stage.large for stage in one.stages)


def test_refinement_grows_with_its_steps_and_goes_with_them() -> None:
    base, more, most = (cost_of("self", refine=steps).stage("refine") for steps in (100, 200, 300))
    assert most.large - more.large == pytest.approx(more.large - base.large)
    assert most.memory == pytest.approx(3 * base.memory)
    assert "refine" not in [stage.name for stage in cost_of("self", refine=0).stages]


def test_a_forward_stage_is_a_pass_of_the_decoder() -> None:
    found = cost_of("self", num_samples=8, sequence_length=32, refine=0)
    shape = plan_of(method="self").before
    assert found.stage("forward").large == forward_flops(dataclasses.replace(shape, vocabulary=0), 8 * 32, 32)


def test_steps_that_correct_follow_each_layer_with_its_mlp_whole_and_folded() -> None:
    closed, refined = (cost_of("self", num_samples=8, sequence_length=32, refine=steps) for steps in (0, 1))
    plan = plan_of(method="self")
    passes = [forward_flops(dataclasses.replace(each, vocabulary=0), 8 * 32, 32) for each in (plan.before, plan.after)]
    more = refined.stage("forward").large - closed.stage("forward").large
    assert plan.after.parameters < plan.before.parameters
    assert sum(passes) - passes[0] <= more <= sum(passes)  # heads are folded in both


def test_clustering_grows_with_the_square_of_the_width() -> None:
    found = cost_of("paper")
    assert found.stage("gram").large == 32 * 2 * 11_008**2 * 3 * 4096
    assert found.work_area > 4 * 11_008**2


def test_the_work_area_holds_grams_in_float32_for_wide_layers(free: Any) -> None:
    free(64 * GB)
    found = cost_of("calibrated", num_samples=16, sequence_length=64)
    assert 5 * 4 * 11_008**2 < found.work_area < 9 * 4 * 11_008**2


def test_seconds_add_up_but_small_products_wait_for_arithmetic_or_memory() -> None:
    rates = Rates(large=10, skinny=2, double=5, memory=1, disk=4)
    assert rates.seconds(Stage("a", large=10, double=5, disk=4)) == 3
    assert rates.seconds(Stage("a", skinny=8, memory=3)) == 4
    assert Stage("a", large=1, disk=2) + Stage("b", large=3) == Stage("a", large=4, disk=2)
    assert passes({"a": 6.0}, 2.0) == {"a": 3.0}
    assert passes({"a": 6.0}, None) == {}


def test_the_machine_is_probed_quickly() -> None:
    module.machine_rates.cache_clear()
    start = time.process_time()
    rates = module.machine_rates(torch.device("cpu"), torch.float32)
    assert time.process_time() - start < 1.0  # 0.2 s on a quiet machine
    assert all(rate > 0 for rate in dataclasses.astuple(rates))


def test_efforts_are_told_side_by_side() -> None:
    found = estimate(plan_of(method="calibrated", data="text"))
    assert list(found.efforts) == list(EFFORTS)
    assert found.efforts["quick"] < found.efforts["normal"] == found.seconds < found.efforts["best"]
    assert estimate(plan_of(method="paper")).efforts == {}
    explicit = plan_of(method="calibrated", data="text", num_samples=8, sequence_length=32, refine=0)
    assert estimate(explicit).efforts == {}


TINY: dict[str, Any] = {"num_samples": 16, "sequence_length": 16}
RUNS = [
    {"method": "self", "ratio": 0.2, "refine": 2, "fidelity_tokens": 64, **TINY},
    {"method": "self", "mlp_ratio": 0.25, "attention_ratio": 0.5, "refine": 0, **TINY},
    {"method": "weights", "mlp_ratio": 0.25, "effort": "quick"},
    {"method": "paper", "ratio": 0.2},
    {"method": "paper", "mlp_ratio": 0.25, "align": "gauge", "repair": "variance"},
    {"method": "paper", "attention_ratio": 0.5, "cluster": "kmeans"},
    {"method": "random", "ratio": 0.2},
    {"method": "flap", "data": "self", "ratio": 0.2, "bias": True, **TINY},
    {"method": "wanda-sp", "data": "self", "ratio": 0.2, **TINY},
]


@pytest.mark.parametrize("options", RUNS, ids=lambda o: "-".join(map(str, o.values())))
def test_a_plan_has_the_stages_of_the_run(tmp_path: Path, session_model: Path, options: dict[str, Any]) -> None:
    model = session_model if "num_samples" not in options else tiny_model(tmp_path / "m", intermediate_size=64)
    expected = estimate(plan(model, **{"fidelity_tokens": 0, **options}))
    report: FoldReport = fold(model, output=tmp_path / "out", **options)
    assert set(report.seconds) == set(expected.stages)
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["forward_pass_seconds"] > 0
    assert stored["passes"] == passes(stored["seconds"], stored["forward_pass_seconds"])


def test_a_report_holds_what_the_effort_stands_for(tmp_path: Path, session_model: Path) -> None:
    report = fold(session_model, method="self", mlp_ratio=0.25, effort="quick", num_samples=16, output=tmp_path / "out")
    found = {name: report.config[name] for name in ("effort", "num_samples", "sequence_length", "refine")}
    assert found == {"effort": "quick", "num_samples": 16, "sequence_length": 128, "refine": 0}
