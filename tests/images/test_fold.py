"""Image models through the command line: folded, and reloaded in the stock class."""

import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import edit_json, tensor_hashes
from torch import Tensor, nn
from transformers import PreTrainedModel

from images.networks import NAMES, image_model, pixels, saved
from llmfold.checkpoint import Source
from llmfold.inversion.deep import InversionOptions
from llmfold.modules.narrow import tensors_of, with_tensors
from llmfold.modules.plan import tried_couplings
from llmfold.modules.probe import outputs

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short inversion: what its images are worth is no matter here."""
    short = partial(InversionOptions, count=8, steps=2)
    monkeypatch.setattr(import_module("llmfold.modules.fold"), "InversionOptions", short)


def reloaded(folder: Path) -> PreTrainedModel:
    """A folder in its stock class, loaded strictly."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def run(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The first output of a model."""
    with torch.no_grad():
        return outputs(model, inputs)[0]


def with_duplicates(model: PreTrainedModel, *inputs: Tensor, heads: bool = False) -> PreTrainedModel:
    """The model with every second unit of every coupling made, and read, as the one before it."""
    tensors = tensors_of(model)
    for coupling in tried_couplings(model, inputs, heads=heads).found:
        source = torch.arange(coupling.units) // 2 * 2
        for slot in coupling.slots:
            tensors[slot.tensor] = slot.write(tensors[slot.tensor], slot.read(tensors[slot.tensor])[source])
    made = with_tensors(model, tensors).eval()
    assert isinstance(made, PreTrainedModel)
    return made


@pytest.mark.parametrize("method", ["paper", "ifm"])
@pytest.mark.parametrize("name", NAMES)
def test_planted_duplicates_go_without_a_trace_and_the_stock_class_loads_the_rest(
    name: str, method: str, llmfold: Cli, tmp_path: Path
) -> None:
    dense = with_duplicates(image_model(name), pixels())
    folder, out = saved(tmp_path / "dense", dense), tmp_path / "out"
    arguments = ("--model", folder, "--ratio", 0.5, "--ratio-of", "channels", "--method", method, "--output", out)
    code, stdout, stderr = llmfold(*arguments)
    assert code == 0, stderr
    assert f"loads as {type(dense).__name__}" in " ".join(stdout.split())
    wanted = run(dense, pixels())
    assert torch.allclose(run(reloaded(out), pixels()), wanted, atol=1e-5 * float(wanted.abs().max()))
    plan = json.loads((out / "report.json").read_text())["plan"]
    assert all(2 * each["after"] == each["before"] for each in plan["couplings"])


def test_heads_go_where_they_are_asked_for_and_the_class_takes_fewer(llmfold: Cli, tmp_path: Path) -> None:
    dense = with_duplicates(image_model("vit"), pixels(), heads=True)
    folder, out = saved(tmp_path / "dense", dense), tmp_path / "out"
    wide = dense.config.hidden_size // dense.config.num_attention_heads
    options = ("--ratio", 0.5, "--ratio-of", "channels", "--method", "paper", "--attention-ratio", 0.5)
    code, stdout, stderr = llmfold("--model", folder, *options, "--output", out)
    assert code == 0, stderr
    assert "loads as ViTForImageClassification" in " ".join(stdout.split())
    config = json.loads((out / "config.json").read_text())
    assert (2 * config["num_attention_heads"], config["head_dim"]) == (dense.config.num_attention_heads, wide)
    wanted = run(dense, pixels())
    assert torch.allclose(run(reloaded(out), pixels()), wanted, atol=1e-5 * float(wanted.abs().max()))
    assert llmfold("--model", folder, "--ratio", 0, *options[4:], "--output", tmp_path / "heads")[0] == 0
    assert json.loads((tmp_path / "heads" / "config.json").read_text())["num_attention_heads"] == 1
    tower = saved(tmp_path / "tower", image_model("tower"))
    code, _, stderr = llmfold("plan", "--model", tower, *options)
    assert (code, "CLIPVisionModel takes no fewer heads" in stderr) == (2, True)


def test_a_whole_clip_is_narrowed_in_both_towers(llmfold: Cli, tmp_path: Path) -> None:
    words = torch.randint(3, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    dense = with_duplicates(image_model("clip"), words, pixels())
    folder, out = saved(tmp_path / "dense", dense), tmp_path / "out"
    arguments = ("--model", folder, "--ratio", 0.5, "--ratio-of", "channels", "--method", "paper", "--output", out)
    assert llmfold(*arguments)[0] == 0
    config = json.loads((out / "config.json").read_text())
    assert [config[part]["intermediate_size"] for part in ("vision_config", "text_config")] == [12, 12]
    wanted = run(dense, words, pixels())
    assert torch.allclose(run(reloaded(out), words, pixels()), wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["bottleneck", "vit"])
def test_at_ratio_zero_the_output_has_the_tensors_of_its_source(name: str, llmfold: Cli, tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "dense", image_model(name)), tmp_path / "out"
    assert llmfold("--model", folder, "--ratio", 0, "--output", out)[0] == 0
    assert tensor_hashes(out) == tensor_hashes(folder)
    before, after = (json.loads((each / "config.json").read_text()) for each in (folder, out))
    assert before == after


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_stored_dtype_stays_and_counters_stay_integers(dtype: torch.dtype, llmfold: Cli, tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "dense", image_model("basic").to(dtype)), tmp_path / "out"
    assert llmfold("--model", folder, "--ratio", 0.3, "--method", "inn", "--output", out)[0] == 0
    tensors = load_file(out / "model.safetensors")
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert counters
    assert all(tensors[name].dtype == torch.int64 for name in counters)
    assert {tensors[name].dtype for name in tensors.keys() - counters} == {dtype}
    assert llmfold("--model", folder, "--ratio", 0.3, "--method", "inn", "--dtype", "float32", "--output", out)[0] == 2
    again = ("--dtype", "float32", "--overwrite")
    assert llmfold("--model", folder, "--ratio", 0.3, "--method", "inn", "--output", out, *again)[0] == 0
    assert {t.dtype for n, t in load_file(out / "model.safetensors").items() if n not in counters} == {torch.float32}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_self_needs_no_data_and_gives_the_same_twice(name: str, llmfold: Cli, tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", image_model(name))
    for out in ("a", "b"):
        assert llmfold("--model", folder, "--ratio", 0.1, "--output", tmp_path / out, "--quiet") == (0, "", "")
    assert tensor_hashes(tmp_path / "a") == tensor_hashes(tmp_path / "b")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["data"]["data"].startswith("no outside data: ")
    assert ("inverted" in report["data"]["data"]) == (name in ("basic", "bottleneck"))
    stored = sum(parameter.numel() for parameter in reloaded(tmp_path / "a").parameters())
    assert report["plan"]["parameters"]["after"] == stored
    assert 0.1 <= report["plan"]["ratio"] == 1 - stored / report["plan"]["parameters"]["before"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *("LICENSE", "README.md", "config.json", "llmfold.json", "model.safetensors", "preprocessor_config.json"),
        *("report.html", "report.json"),
    ]


def test_statistics_are_measured_anew_on_inverted_images(llmfold: Cli, tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", image_model("basic"))
    common = ("--model", folder, "--ratio", 0.3, "--method", "magnitude-l1", "--quiet")
    assert llmfold(*common, "--output", tmp_path / "plain")[0] == 0
    assert llmfold(*common, "--output", tmp_path / "reset", "--repair", "statistics")[0] == 0
    plain, reset = (load_file(tmp_path / out / "model.safetensors") for out in ("plain", "reset"))
    changed = {name for name in plain if not torch.equal(plain[name], reset[name])}
    assert changed == {name for name in plain if "running_" in name or name.endswith("num_batches_tracked")}


def test_several_ratios_share_what_is_measured_on(
    llmfold: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = import_module("llmfold.images.run")
    made: list[Tensor] = []
    original = runs.implied_inputs

    def counted(*arguments: Any) -> Tensor:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(runs, "implied_inputs", counted)
    folder, out = saved(tmp_path / "dense", image_model("basic")), tmp_path / "out"
    assert llmfold("--model", folder, "--ratio", "0.2,0.4", "--output", out)[0] == 0
    assert len(made) == 1
    sizes = [(out / f"dense-folded-{ratio}" / "model.safetensors").stat().st_size for ratio in (0.2, 0.4)]
    assert sizes[0] > sizes[1]
    alone = ("--model", folder, "--ratio", 0.4, "--output", tmp_path / "alone", "--quiet")
    assert llmfold(*alone)[0] == 0
    assert tensor_hashes(tmp_path / "alone") == tensor_hashes(out / "dense-folded-0.4")


def test_widths_that_no_config_holds_come_as_a_program_for_any_batch(llmfold: Cli, tmp_path: Path) -> None:
    dense = image_model("convnext")
    folder, out = saved(tmp_path / "dense", dense), tmp_path / "out"
    code, stdout, _ = llmfold("--model", folder, "--ratio", 0.3, "--method", "paper", "--output", out)
    assert code == 0
    assert "no stock class loads the weights" in " ".join(stdout.split())
    program = torch.export.load(out / "model.pt2").module()
    stored = load_file(out / "model.safetensors")
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    wanted = run(with_tensors(dense, stored).eval(), images)
    with torch.no_grad():
        assert torch.allclose(program(images)[0], wanted, atol=1e-5)
    assert stored["convnext.encoder.stages.0.layers.0.pwconv1.weight"].shape[0] < 32
    assert "torch.export.load(" in (out / "README.md").read_text()


def test_a_plan_prints_widths_and_writes_nothing_even_without_weights(
    llmfold: Cli, tmp_path: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "dense", image_model("basic"))
    monkeypatch.chdir(space)
    arguments = ("--model", folder, "--ratio", 0.5, "--ratio-of", "channels")
    code, stdout, stderr = llmfold("plan", *arguments)
    assert (code, stderr) == (0, "")
    assert "8, 16 → 4, 8" in stdout
    (folder / "model.safetensors").unlink()
    assert llmfold(*arguments, "--dry-run") == (0, stdout, "")
    assert list(space.iterdir()) == []
    assert llmfold(*arguments, "--quiet")[0] == 1


def test_a_model_of_the_hub_is_known_and_planned_by_its_config(
    llmfold: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "snapshot", image_model("vit"))
    (folder / "model.safetensors").unlink()
    asked: list[bool] = []

    def resolve(model: str, *, revision: str | None, weights: bool) -> Source:
        asked.append(weights)
        return Source(folder, model, "0" * 40)

    monkeypatch.setattr(import_module("llmfold.checkpoint"), "resolve", resolve)
    code, stdout, stderr = llmfold("plan", "--model", "org/vit", "--ratio", 0.5, "--ratio-of", "channels")
    assert (code, stderr) == (0, "")
    assert "24 → 12" in stdout
    assert not any(asked)
    assert llmfold("plan", "--model", "org/vit", "--ratio", 2)[0] == 2
    assert len(asked) == 2  # what no model takes is told without asking the hub


def test_a_config_without_architectures_is_known_by_its_type(llmfold: Cli, tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "dense", image_model("vit")), tmp_path / "out"
    edit_json(folder / "config.json", architectures=None)
    assert llmfold("--model", folder, "--ratio", 0.1, "--method", "magnitude-l2", "--output", out)[0] == 0
    assert isinstance(reloaded(out), transformers.ViTForImageClassification)
