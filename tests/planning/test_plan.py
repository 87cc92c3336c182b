import json
from pathlib import Path
from typing import Any

import pytest
import torch
from folding.builders import VARIANTS, raw_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import llmfold
from llmfold.checkpoint import TensorInfo
from llmfold.config import FoldConfig, LayerOverride
from llmfold.effort import EFFORTS
from llmfold.errors import UsageError
from llmfold.models import shape_of
from llmfold.pipeline.estimate import estimate, whole_cost
from llmfold.planning import FoldPlan, make_plan
from llmfold.sizes import human_seconds

HALF_BYTES = 2
SAME = ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "tie_word_embeddings")


def infos(raw: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, dtype, size, "model.safetensors")
        for name, size in shape_of(raw).stored_tensors().items()
    }


def plan(raw: dict[str, Any], **options: Any) -> FoldPlan:
    return make_plan(shape_of(raw), infos(raw), FoldConfig(model="none", **options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_planned_tensors_are_those_of_the_stock_model_of_the_new_widths(variant: str) -> None:
    family, fields = VARIANTS[variant]
    raw = raw_config(family, **fields)
    found = plan(raw, mlp_ratio=0.3, attention_ratio=0.5)
    layer = found.after.layers[0]
    config = CONFIG_MAPPING[found.written_as.model_type](
        **{key: raw[key] for key in (*SAME, "attention_bias", "mlp_bias") if key in SAME or raw.get(key)},
        intermediate_size=layer.intermediate,
        num_attention_heads=layer.heads,
        num_key_value_heads=layer.kv_heads,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {spec.name: spec.shape for spec in found.tensors} == expected
    assert found.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert found.bytes_after == HALF_BYTES * found.parameters_after
    assert found.bytes_before == HALF_BYTES * found.parameters_before
    assert found.ratio == pytest.approx(1 - found.parameters_after / found.parameters_before)
    assert found.decoder_ratio > found.ratio > 0
    assert found.folded_layers == [0, 1]
    assert not found.needs_remote_code


def test_order_and_dtypes_of_tensors_are_kept_unless_asked_for() -> None:
    raw = raw_config("llama")
    tensors = dict(reversed(infos(raw).items()))
    name = next(iter(tensors))
    tensors[name] = TensorInfo(name, torch.float32, tensors[name].shape, "x")
    kept = make_plan(shape_of(raw), tensors, FoldConfig(model="none", mlp_ratio=0.5))
    assert [spec.name for spec in kept.tensors] == list(tensors)
    assert [spec.dtype for spec in kept.tensors] == [info.dtype for info in tensors.values()]
    wide = make_plan(shape_of(raw), tensors, FoldConfig(model="none", mlp_ratio=0.5, dtype="float32"))
    assert {spec.dtype for spec in wide.tensors} == {torch.float32}
    assert wide.bytes_after == 4 * wide.parameters_after


def test_a_plan_that_folds_nothing_writes_the_same_tensors() -> None:
    raw = raw_config("qwen3")
    found = plan(raw, ratio=0.0)
    assert found.folded_layers == []
    assert {spec.name: spec.shape for spec in found.tensors} == shape_of(raw).stored_tensors()
    assert found.ratio == 0


def test_layers_of_different_widths_need_remote_code() -> None:
    found = plan(raw_config("llama"), layers={1: LayerOverride(mlp=0.5)})
    assert found.needs_remote_code
    assert found.folded_layers == [1]
    shapes = {spec.name: spec.shape for spec in found.tensors}
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (32, 40)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (32, 20)


@pytest.mark.parametrize(
    ("family", "fields", "written_as"),
    [
        ("llama", {}, "mistral"),
        ("llama", {"attention_bias": True}, "llama"),
        ("llama", {"mlp_bias": True}, "llama"),
        ("mistral", {}, "mistral"),
        ("qwen2", {}, "qwen2"),
        ("qwen3", {}, "qwen3"),
    ],
)
def test_a_llama_is_written_as_mistral_only_where_its_config_refuses(
    family: str, fields: dict[str, Any], written_as: str
) -> None:
    raw = raw_config(family, **fields)
    assert plan(raw, attention_ratio=0.25).written_as.model_type == written_as
    assert plan(raw, attention_ratio=0.5).written_as.model_type == family
    assert plan(raw, mlp_ratio=0.25).written_as.model_type == family


def test_the_report_of_a_plan_is_plain_data() -> None:

    found = plan(raw_config("llama"), mlp_ratio=0.2)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["parameters"] == {"before": found.parameters_before, "after": found.parameters_after}
    assert data["layers"][1]["before"] == {"intermediate": 40, "heads": 8, "kv_heads": 4}
    assert data["layers"][1]["after"]["intermediate"] == found.after.layers[1].intermediate
    assert data["written_as"] == "LlamaForCausalLM"


def test_a_ratio_that_cannot_be_met_stops_the_plan() -> None:
    with pytest.raises(UsageError, match="cannot be met"):
        plan(raw_config("llama"), ratio=0.99)


def test_estimates_grow_with_the_work() -> None:
    small = raw_config("llama", num_hidden_layers=1)
    large = raw_config("llama", num_hidden_layers=1, intermediate_size=4096)
    costs = [estimate(plan(raw, mlp_ratio=0.5)) for raw in (small, large)]
    assert costs[1].memory_bytes - costs[0].memory_bytes > 4 * (4096**2 - 40**2)
    hidden = plan(small, mlp_ratio=0.5).before.hidden
    for raw, cost in zip((small, large), costs, strict=True):
        written = plan(raw, mlp_ratio=0.5, method="paper")
        states = 4 * 9 * EFFORTS["normal"].tokens_for(written.before) * hidden  # dense, and followed
        assert estimate(written).disk_bytes == written.bytes_after
        assert cost.disk_bytes == written.bytes_after + states
    assert all(cost.seconds >= 0 for cost in costs)
    deep = raw_config("llama", num_hidden_layers=8)
    by_depth = [estimate(plan(raw, mlp_ratio=0.5, method="paper")).memory_bytes for raw in (small, deep)]
    assert by_depth[0] == by_depth[1]
    ward, hartigan = (estimate(plan(large, mlp_ratio=0.5, method="paper", cluster=c)) for c in ("ward", "hartigan"))
    assert costs[1].memory_bytes > hartigan.memory_bytes > ward.memory_bytes
    assert estimate(plan(large, ratio=0.0)).memory_bytes < costs[1].memory_bytes


def test_the_published_method_clusters_every_expert_and_gauge_distances_hold_more(tmp_path: Path) -> None:
    grams = []
    for count in (4, 8):
        config = CONFIG_MAPPING["mixtral"](num_hidden_layers=2, num_local_experts=count, dtype="bfloat16")
        raw = {**json.loads(config.to_json_string(use_diff=False)), "dtype": "bfloat16"}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        costs = whole_cost(llmfold.plan(tmp_path, mlp_ratio=0.5, method="paper")).stages
        grams.append(sum(stage.large for stage in costs if stage.name == "gram"))
    assert grams[1] == 2 * grams[0] > 0
    large = raw_config("llama", num_hidden_layers=1, intermediate_size=4096)
    plain, gauge = (estimate(plan(large, mlp_ratio=0.5, method="paper", align=a)) for a in ("none", "gauge"))
    assert gauge.memory_bytes - plain.memory_bytes >= 4 * 4096**2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (0.2, "1 s"), (41.2, "42 s"), (89.9, "90 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
