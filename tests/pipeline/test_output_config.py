import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from folding.builders import (
    VARIANTS,
    layer_weights,
    model_logits,
    raw_config,
    relative,
    state_of,
    stock_logits,
    stock_model,
    with_layer,
)
from safetensors.torch import save_file
from shapes import shape_with_stock
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from llmfold.checkpoint import TensorInfo
from llmfold.config import FoldConfig, LayerOverride
from llmfold.folding.layer import MergeOptions, fold_layer
from llmfold.models import ModelShape, shape_of
from llmfold.models.family_settings import rope_parameters
from llmfold.models.own_code import MODELING_FILE, modeling_source
from llmfold.pipeline.output_config import output_config
from llmfold.planning import FoldPlan, make_plan

TOKENS = (torch.arange(40).view(2, 20) * 13 + 5) % 48
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **VARIANTS,
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-3}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
}
FRACTIONS = [(0.3, 0.0), (0.0, 0.5), (0.3, 0.25), (0.25, 0.75)]


def plan_of(raw: dict[str, Any], **options: Any) -> FoldPlan:
    shape = shape_with_stock(raw)
    tensors = {"lm_head.weight": TensorInfo("lm_head.weight", torch.float32, (1,), "x")}
    return make_plan(shape, tensors, FoldConfig(model="none", **options))


def folded_state(raw: dict[str, Any], plan: FoldPlan, seed: int = 0) -> dict[str, Tensor]:
    state, shape = state_of(stock_model(raw, seed)), plan.before
    for index, (before, after) in enumerate(zip(shape.layers, plan.after.layers, strict=True)):
        folded, _ = next(fold_layer(layer_weights(state, shape, index), shape, before, [after], MergeOptions()))
        state = with_layer(state, index, folded)
    return state


def written(folder: Path, config: dict[str, Any], state: dict[str, Tensor], shape: ModelShape) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: t.contiguous() for name, t in state.items() if not (shape.tied and name == "lm_head.weight")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("fractions", FRACTIONS)
@pytest.mark.parametrize("case", CASES)
def test_stock_transformers_loads_the_config_and_computes_the_same(
    tmp_path: Path, case: str, fractions: tuple[float, float]
) -> None:
    family, fields = CASES[case]
    raw = raw_config(family, **fields)
    plan = plan_of(raw, mlp_ratio=fractions[0], attention_ratio=fractions[1])
    config, state = output_config(raw, plan), folded_state(raw, plan)
    assert shape_of(config).layers == plan.after.layers
    folder = written(tmp_path / "out", config, state, plan.after)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    assert type(model).__name__ == plan.written_as.causal_lm == config["architectures"][0]
    expected = model_logits(raw, plan.after, state, TOKENS)
    assert relative(stock_logits(model.eval(), TOKENS), expected) < 1e-5
    assert relative(model_logits(config, plan.after, state, TOKENS), expected) < 1e-7
    again = AutoConfig.from_pretrained(folder)
    again.save_pretrained(tmp_path / "again")
    reloaded = AutoConfig.from_pretrained(tmp_path / "again")
    assert {**reloaded.to_dict(), "_name_or_path": ""} == {**again.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize("case", CASES)
def test_everything_but_widths_is_the_source(case: str) -> None:
    family, fields = CASES[case]
    raw = {**raw_config(family, **fields), "custom_note": "kept", "_name_or_path": "/home/somebody", "auto_map": {}}
    config = output_config(raw, plan_of(raw, mlp_ratio=0.3, attention_ratio=0.5))
    assert config["transformers_version"] == transformers.__version__
    assert config["custom_note"] == "kept"
    assert not {"_name_or_path", "auto_map", "per_layer_config"} & config.keys()
    new = {"intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "transformers_version"}
    rope = {"rope_parameters", "rope_theta", "rope_scaling"}
    same = raw.keys() - new - rope - {"_name_or_path", "auto_map"}
    if config["model_type"] == family:
        assert {key: config[key] for key in same} == {key: raw[key] for key in same}
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 5e5}, LLAMA3])
@pytest.mark.parametrize("spelling", ["new", "old"])
def test_rope_is_written_as_transformers_5_and_4_spell_it(rope: dict[str, Any], spelling: str) -> None:
    raw = raw_config("llama", rope_parameters=rope)
    if spelling == "old":
        del raw["rope_parameters"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        raw["rope_theta"], raw["rope_scaling"] = rope["rope_theta"], None if rope is not LLAMA3 else scaling
    config = output_config(raw, plan_of(raw, mlp_ratio=0.3))
    assert config["rope_parameters"] == rope
    assert config["rope_theta"] == rope["rope_theta"]
    expected = None if rope is not LLAMA3 else {key: value for key, value in rope.items() if key != "rope_theta"}
    assert config["rope_scaling"] == expected
    for kept in ({"rope_parameters"}, {"rope_theta", "rope_scaling"}):
        one = {
            k: v for k, v in config.items() if k in kept or k not in ("rope_parameters", "rope_theta", "rope_scaling")
        }
        found = rope_parameters(CONFIG_MAPPING["llama"].from_dict(one))
        assert {key: found[key] for key in rope} == rope


def test_the_fallback_spells_out_every_field_whose_default_differs() -> None:
    raw = raw_config("llama", rms_norm_eps=1e-3, hidden_act="gelu", tie_word_embeddings=True, vocab_size=50)
    sparse = {key: raw[key] for key in raw if key not in ("hidden_act", "attention_dropout", "use_cache")}
    del sparse["max_position_embeddings"]
    sparse.update(pretraining_tp=1, attention_bias=False, mlp_bias=False, num_key_value_heads=4)
    config = output_config(sparse, plan_of(sparse, attention_ratio=0.25))
    assert config["model_type"] == "mistral"
    assert config["architectures"] == ["MistralForCausalLM"]
    assert not {"attention_bias", "mlp_bias", "pretraining_tp"} & config.keys()
    assert config["sliding_window"] is None
    stock, llama = CONFIG_MAPPING["mistral"].from_dict(config), CONFIG_MAPPING["llama"].from_dict(sparse)
    assert (stock.num_attention_heads, stock.num_key_value_heads, stock.head_dim) == (6, 3, 8)
    for key in (
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
        "attention_dropout",
        "initializer_range",
    ):
        assert key in config
        assert getattr(stock, key) == getattr(llama, key)
    assert rope_parameters(stock)["rope_theta"] == rope_parameters(llama)["rope_theta"]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_follows_the_tensors(key: str) -> None:
    raw = {k: v for k, v in raw_config("llama").items() if k not in ("dtype", "torch_dtype")}
    raw[key] = "float32"
    assert output_config(raw, plan_of(raw, mlp_ratio=0.3))[key] == "float32"
    narrow = output_config(raw, plan_of(raw, mlp_ratio=0.3, dtype="bfloat16"))
    assert {k: narrow[k] for k in ("dtype", "torch_dtype") if k in narrow} == {key: "bfloat16"}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_layers_of_different_widths_carry_their_own_modelling_file(tmp_path: Path, family: str) -> None:
    raw = raw_config(family, num_hidden_layers=11)
    layers = {1: LayerOverride(mlp=0.5), 10: LayerOverride(mlp=0.25, attention=0.5)}
    plan = plan_of(raw, layers=layers)
    config, state = output_config(raw, plan), folded_state(raw, plan)
    name = f"Folded{plan.written_as.causal_lm}"
    assert config["architectures"] == [name]
    assert config["auto_map"] == {"AutoModelForCausalLM": f"modeling_llmfold.{name}"}
    assert [config["per_layer_config"][str(i)]["intermediate_size"] for i in (0, 1, 10)] == [40, 20, 30]
    assert (config["intermediate_size"], config["num_attention_heads"]) == (40, 8)
    assert shape_of(config).layers == plan.after.layers
    folder = written(tmp_path / "out", config, state, plan.after)
    (folder / MODELING_FILE).write_text(modeling_source(plan.written_as))
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=True
    )
    assert not any(info.values())
    expected = model_logits(raw, plan.after, state, TOKENS)
    assert relative(stock_logits(model.eval(), TOKENS), expected) < 1e-5
    model.config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert shape_of(saved).layers == plan.after.layers


def test_a_folded_model_of_different_layers_can_be_folded_again() -> None:
    raw = raw_config("llama")
    first = output_config(raw, plan_of(raw, layers={1: LayerOverride(mlp=0.5)}))
    second = output_config(first, plan_of(first, mlp_ratio=0.5))
    assert [x.intermediate for x in shape_of(second).layers] == [20, 10]
    even = plan_of(first, layers={0: LayerOverride(mlp=0.5), 1: LayerOverride(mlp=0.0)})
    assert even.after.layers == tuple(replace(x, intermediate=20) for x in even.before.layers)
    plain = output_config(first, even)
    assert plain["architectures"] == ["LlamaForCausalLM"]
    assert not {"per_layer_config", "auto_map"} & plain.keys()
