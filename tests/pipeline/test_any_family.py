"""Families that are not registered fold through the whole pipeline, and what cannot be is refused at once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_models import tiny_config, tiny_stock
from support import fold, logits, tensor_hashes
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import llmfold
from llmfold.errors import CheckpointError, OutputError, UsageError
from llmfold.methods.method import method_of
from llmfold.models import LayerShape, pieces
from llmfold.models.stock_shape import StockShape
from llmfold.pipeline.estimate import memory_needed

SELF = {"method": "self", "num_samples": 16, "sequence_length": 16, "refine": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for family in ("gemma2", "mixtral"):
        torch.manual_seed(0)
        folders[family] = tmp_path_factory.mktemp("any") / family
        config = tiny_config(family)
        config.bos_token_id = 1
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folders[family])
    return folders


@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_ratio_zero_changes_nothing(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    fold(models[family], output=tmp_path / "out", ratio=0.0, method="paper")
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(models[family])


@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
@pytest.mark.parametrize(
    "options", [{"method": "paper"}, SELF, {"method": "weights"}], ids=["paper", "self", "weights"]
)
def test_a_narrower_model_loads_with_names_and_layout_of_its_source(
    family: str, options: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    report = fold(models[family], output=tmp_path / "out", mlp_ratio=0.3, fidelity_tokens=64, **options)
    before, after = (load_file(folder / "model.safetensors") for folder in (models[family], tmp_path / "out"))
    assert before.keys() == after.keys()
    assert sum(tensor.numel() for tensor in after.values()) == report.parameters_after < report.parameters_before
    assert logits(tmp_path / "out", torch.tensor([[1, 2, 3]])).isfinite().all()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize(
    "options",
    [{"method": "paper", "repair": "variance"}, {**SELF, "attention_ratio": 0.5}, {"method": "weights"}],
    ids=["paper", "self", "weights"],
)
def test_experts_that_come_one_by_one_give_the_bytes_of_whole_layers(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored one by one, in one tensor, and in one beside a shared expert; merged numbers are those of the report."""
    tiny_stock(family).model.save_pretrained(tmp_path / "model")
    options = {**options, "mlp_ratio": 0.3, "fidelity_tokens": 0}
    monkeypatch.setattr(pieces, "GROUP_PARAMETERS", 1)
    apart = fold(tmp_path / "model", output=tmp_path / "apart", **options)
    monkeypatch.setattr(type(method_of(options["method"])), "by_pieces", False)
    monkeypatch.setattr(StockShape, "unpack_deferred", lambda self, index, read: self.unpack(index, read))
    whole = fold(tmp_path / "model", output=tmp_path / "whole", **options)
    assert tensor_hashes(tmp_path / "apart") == tensor_hashes(tmp_path / "whole")
    for one, other in zip(apart.layers, whole.layers, strict=True):
        assert one["attention"] == other["attention"]
        assert one["mlp"] == other["mlp"]
        assert one["mlp"]["couplings"] == len(tiny_stock(family).shape.couplings(LayerShape(48, 4, 2)).neurons)


def test_an_expert_that_is_not_written_is_told(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else would say that a tensor is zeros: its digest is taken of what is written."""
    whole = StockShape.pieces
    monkeypatch.setattr(pieces, "GROUP_PARAMETERS", 1)
    monkeypatch.setattr(StockShape, "pieces", lambda self, index: whole(self, index)[1:])
    with pytest.raises(OutputError, match=r"block_sparse_moe\.experts\.0\.w1\.weight' came out with fewer experts"):
        fold(models["mixtral"], output=tmp_path / "out", method="paper", mlp_ratio=0.3)


@pytest.mark.parametrize(("method", "router"), [("paper", 0), ("weights", 8 * 1024 * 4)])
def test_the_memory_of_a_fold_is_that_of_a_group_of_experts(method: str, router: int, tmp_path: Path) -> None:
    """Sixteen experts take what eight take, but for the router; the check, which runs whole layers, takes more."""
    config = CONFIG_MAPPING["mixtral"](
        hidden_size=1024, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8
    )

    def needed(experts: int, **options: Any) -> int:
        config.num_local_experts = experts
        config.save_pretrained(tmp_path)
        return memory_needed(llmfold.plan(tmp_path, method=method, mlp_ratio=0.25, **options))

    few, many = (needed(n, verify="shapes") for n in (8, 16))
    assert many - few == router
    assert needed(8) < needed(16)


def test_the_same_seed_gives_the_same_bytes(models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        fold(models["mixtral"], output=tmp_path / name, mlp_ratio=0.3, **SELF)
    assert tensor_hashes(tmp_path / "one") == tensor_hashes(tmp_path / "two")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "flap", "data": "self"},
        {"method": "paper", "align": "gauge"},
        {"method": "self", "allocation": "adaptive"},
    ],
)
def test_what_wants_a_registered_family_is_refused(
    options: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is for llama, mistral, qwen2, qwen3 alone"):
        fold(models["gemma2"], output=tmp_path / "out", ratio=0.2, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["wanda-sp", "flap-uniform", "llm-pruner", "magnitude", "random"])
def test_baselines_prune_plain_layers_of_any_family_and_no_others(
    method: str, models: dict[str, Path], tmp_path: Path
) -> None:
    measured = {} if method in ("magnitude", "random") else {"data": "self", "num_samples": 8, "sequence_length": 16}
    options = {"method": method, "mlp_ratio": 0.3, **measured, **({"bias": False} if "flap" in method else {})}
    report = fold(models["gemma2"], output=tmp_path / "out", **options)
    assert report.verification["mode"] == "full"
    assert report.parameters_after < report.parameters_before
    with pytest.raises(UsageError, match="one gated MLP and one attention"):
        fold(models["mixtral"], output=tmp_path / "other", **options)


def test_a_missing_expert_is_a_sentence(models: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(models["mixtral"], model)
    tensors = load_file(model / "model.safetensors")
    del tensors[next(name for name in tensors if "experts.1.w3" in name)]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="do not fit together: one is missing"):
        fold(model, output=tmp_path / "out", ratio=0.2, method="paper")


def test_a_plan_needs_no_weights(models: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(models["mixtral"] / "config.json", bare)
    without, whole = (llmfold.plan(folder, ratio=0.1, method="paper") for folder in (bare, models["mixtral"]))
    assert (without.parameters_after, without.after.layers) == (whole.parameters_after, whole.after.layers)
    assert without.to_dict()["couplings"].startswith("neurons of mlp.experts")


def test_layers_of_a_recipe_must_be_alike(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one width for all its layers"):
        fold(models["gemma2"], output=tmp_path / "out", mlp_ratio=0.2, method="paper", layers={0: {"mlp": 0.5}})


def test_widths_that_the_class_does_not_build_are_told_before_any_work(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llmfold.models.width_keys.build_stock", lambda config: (_ for _ in ()).throw(ValueError("odd"))
    )
    with pytest.raises(UsageError, match="builds no model of the planned widths"):
        fold(models["gemma2"], output=tmp_path / "out", ratio=0.1, method="paper")
    assert list(tmp_path.iterdir()) == []
