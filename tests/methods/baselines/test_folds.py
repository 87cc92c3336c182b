"""Baselines through the engine: outputs that load, kept units, repeatability, errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import file_hashes, fold, logits, tensors, tiny_model

from llmfold import FoldConfig
from llmfold.config import LayerOverride
from llmfold.errors import UsageError
from llmfold.methods.baselines.pruner import Pruner
from llmfold.registry import names

from .builders import MEASURE

IDS = torch.arange(24)[None] % 64
BOTH = {"mlp_ratio": 0.25, "attention_ratio": 0.5}

BASELINES = names(lambda method: not method.folds)
WITH_DATA = names(lambda method: method.needs_data)


def options_for(method: str) -> dict[str, Any]:
    return {"method": method, **(MEASURE if method in WITH_DATA else {})}


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("qwen3", 1), ("mistral", 4)])
@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_writes_what_stock_transformers_loads(
    tmp_path: Path, method: str, family: str, kv_heads: int
) -> None:
    source = tiny_model(tmp_path / "m", family, num_key_value_heads=kv_heads)
    biases = {"bias": family == "llama"} if method.startswith("flap") else {}
    report = fold(source, output=tmp_path / "out", **BOTH, **options_for(method), **biases)
    assert report.verification["mode"] == "full"
    widths = [layer["after"] for layer in report.plan["layers"]]
    assert sum(layer["intermediate"] for layer in widths) == 72
    if method != "flap":
        assert {(w["heads"], w["kv_heads"]) for w in widths} == {(2, max(kv_heads // 2, 1))}
    expected = "none" if method not in WITH_DATA else "sampled from the model itself"
    assert report.data["data"] == expected
    assert json.loads((tmp_path / "out" / "llmfold.json").read_text())["data"] == expected
    assert not (tmp_path / "out" / "states").exists()


@pytest.mark.parametrize("method", ["random", "magnitude", "wanda-sp", "llm-pruner"])
def test_kept_units_are_copied_bit_for_bit(tmp_path: Path, method: str) -> None:
    source = tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    fold(source, output=tmp_path / "out", **BOTH, **options_for(method))
    before, after = tensors(source), tensors(tmp_path / "out")
    for index in range(2):
        mlp = f"model.layers.{index}.mlp."
        rows = [
            int((before[mlp + "gate_proj.weight"] == row).all(1).nonzero()) for row in after[mlp + "gate_proj.weight"]
        ]
        assert rows == sorted(rows)
        assert torch.equal(after[mlp + "up_proj.weight"], before[mlp + "up_proj.weight"][rows])
        assert torch.equal(after[mlp + "down_proj.weight"], before[mlp + "down_proj.weight"][:, rows])
        attention = f"model.layers.{index}.self_attn."
        k = before[attention + "k_proj.weight"]
        group = int(torch.equal(after[attention + "k_proj.weight"], k[8:]))
        assert torch.equal(after[attention + "k_proj.weight"], k[group * 8 : group * 8 + 8])
        features = slice(group * 16, group * 16 + 16)
        assert torch.equal(after[attention + "q_proj.weight"], before[attention + "q_proj.weight"][features])
        assert torch.equal(after[attention + "o_proj.weight"], before[attention + "o_proj.weight"][:, features])


def test_flap_gives_layers_their_own_widths_and_biases(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=4)
    out = tmp_path / "out"
    report = fold(source, ratio=0.3, ratio_of="decoder", output=out, **options_for("flap"))
    config = json.loads((out / "config.json").read_text())
    assert config["attention_bias"]
    assert config["mlp_bias"]
    assert config["model_type"] == "llama"
    assert report.plan["needs_trust_remote_code"]
    assert len({str(layer["after"]) for layer in report.plan["layers"]}) > 1
    assert torch.isfinite(logits(out, IDS, remote_code=True)).all()
    found = tensors(out)
    assert all(found[f"model.layers.{i}.mlp.down_proj.bias"].any() for i in range(4) if report.layers[i]["mlp"])
    assert not any(tensor.any() for name, tensor in found.items() if name.endswith("gate_proj.bias"))


def test_flap_may_leave_no_layer_with_a_head_count_that_the_config_takes(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    fold(source, mlp_ratio=0.1, attention_ratio=0.25, output=tmp_path / "out", **options_for("flap"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert sum(layer["num_attention_heads"] for layer in config["per_layer_config"].values()) == 24 * 6 // 8
    assert config["hidden_size"] % config["num_attention_heads"] == 0


def test_without_bias_flap_uniform_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m")
    fold(source, mlp_ratio=0.25, output=tmp_path / "out", **options_for("flap-uniform"), bias=False)
    assert tensors(tmp_path / "out").keys() == tensors(source).keys()
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["mlp_bias"]


@pytest.mark.parametrize("bias", [True, False])
def test_biases_keep_a_head_count_that_the_config_refuses_in_the_family(tmp_path: Path, bias: bool) -> None:
    source = tiny_model(tmp_path / "m", num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    report = fold(source, attention_ratio=0.25, output=tmp_path / "out", bias=bias, **options_for("flap-uniform"))
    assert report.plan["needs_trust_remote_code"] == bias
    assert report.plan["written_as"] == ("LlamaForCausalLM" if bias else "MistralForCausalLM")
    assert torch.isfinite(logits(tmp_path / "out", IDS, remote_code=bias)).all()


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_biases_that_no_config_holds_are_refused_before_any_work(tmp_path: Path, space: Path, family: str) -> None:
    source = tiny_model(tmp_path / "m", family)
    with pytest.raises(UsageError, match=r"Config has no place .*--no-bias"):
        fold(source, mlp_ratio=0.25, output=space / "out", **options_for("flap-uniform"))
    assert not list(space.iterdir())


@pytest.mark.parametrize("method", BASELINES)
def test_the_same_run_gives_the_same_bytes_even_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=3)
    run = {"ratio": 0.25, "ratio_of": "decoder", "verify": "off", **options_for(method)}
    fold(source, output=tmp_path / "one", **run)
    original = Pruner.fold

    def struck(self: Pruner, index: int, *rest: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return original(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "fold", struck)
        with pytest.raises(KeyboardInterrupt):
            fold(source, output=tmp_path / "two", **run)
    report = fold(source, output=tmp_path / "two", **run)
    assert report.resumed_layers == 2
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")


def test_a_recipe_spares_layers_as_the_published_llm_pruner_does(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=3)
    layers = {"0": {"mlp": 0, "attention": 0}, "2": {"mlp": 0, "attention": 0}}
    report = fold(source, output=tmp_path / "out", layers=layers, **BOTH, **options_for("llm-pruner"))
    assert [layer["after"]["intermediate"] for layer in report.plan["layers"]] == [48, 36, 48]
    before, after = tensors(source), tensors(tmp_path / "out")
    assert all(torch.equal(after[name], before[name]) for name in before if ".layers.1." not in name)


@pytest.mark.parametrize("method", WITH_DATA)
def test_missing_data_is_named(method: str) -> None:
    with pytest.raises(UsageError, match=f"--method {method} needs --data"):
        FoldConfig("m", ratio=0.2, method=method)


@pytest.mark.parametrize("method", ["random", "magnitude", "paper", "self", "weights"])
def test_data_that_a_method_does_not_use_is_refused(method: str) -> None:
    with pytest.raises(UsageError, match="uses no data"):
        FoldConfig("m", ratio=0.2, method=method, data="text.txt")


def test_flap_takes_no_recipe_for_layers() -> None:
    with pytest.raises(UsageError, match="flap-uniform"):
        FoldConfig("m", ratio=0.2, method="flap", data="self", layers={0: LayerOverride(mlp=0.5)})


def test_the_command_line_says_what_a_baseline_used(
    tmp_path: Path, model: Path, llmfold: Callable[..., tuple[int, str, str]]
) -> None:
    common = ("--model", model, "--mlp-ratio", 0.25, "--output", tmp_path / "out", "--num-samples", 8)
    code, out, err = llmfold(*common, "--sequence-length", 16, "--method", "flap", "--data", "self", "--no-bias")
    assert (code, err) == (0, "")
    assert "tokens sampled from the model itself" in out
    code, _, err = llmfold(*common, "--overwrite", "--method", "wanda-sp")
    assert code == 2
    assert "needs --data" in err
