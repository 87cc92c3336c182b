"""What is refused of image models: one sentence, the right exit code, nothing written."""

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import edit_json

from images.networks import image_model, saved

Cli = Callable[..., tuple[int, str, str]]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that no test may change."""
    place = tmp_path_factory.mktemp("models")
    return {name: saved(place / name, image_model(name)) for name in ("basic", "vit", "clip")}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("basic", ["--ratio", "0.3", "--align", "gauge"], ["--align is not for image models"]),
        ("basic", ["--ratio", "0.3", "--effort", "quick"], ["--effort is not for image models"]),
        ("basic", ["--ratio", "0.3", "--method", "weights"], ["--method is 'weights'", "magnitude-l1"]),
        ("basic", ["--ratio", "0.3", "--ratio-of", "decoder"], ["--ratio-of is 'decoder'", "channels"]),
        ("basic", ["--ratio", "0.3", "--repair", "statistics"], ["--method self repairs by itself"]),
        ("basic", ["--ratio", "0.3", "--method", "inn", "--repair", "variance"], ["inn merges nothing"]),
        ("basic", ["--ratio", "0.3", "--method", "inn", "--cluster", "ward"], ["--cluster is used by --method paper"]),
        ("basic", ["--ratio", "0.3", "--method", "inn", "--device", "cpu"], ["--device is used by --method self"]),
        ("basic", ["--ratio", "0.3", "--revision", "main"], ["works for hub models only"]),
        ("basic", ["--ratio", "0.999"], ["--ratio 0.999 is more than", "choose a smaller one"]),
        ("basic", ["--ratio", "1.5"], ["--ratio is 1.5"]),
        ("basic", ["--mlp-ratio", "0.5"], ["--mlp-ratio is not for image models"]),
        ("basic", ["--method", "paper"], ["--ratio is missing", "fraction of parameters to remove"]),
        ("vit", ["--ratio", "0.1", "--method", "paper", "--repair", "variance"], ["has none: leave it out"]),
        ("clip", ["--ratio", "0.1"], ["--method self makes images", "pass --method paper"]),
    ],
)
def test_options_that_do_not_fit(
    name: str, options: list[str], words: list[str], folders: dict[str, Path], llmfold: Cli, space: Path
) -> None:
    code, _, stderr = llmfold("--model", folders[name], "--output", space / "out", *options)
    assert code == 2, stderr
    assert stderr.count("\n") == 1
    assert all(word in stderr for word in words), stderr
    assert os.listdir(space) == []


@pytest.mark.parametrize("option", [("--method", "ifm"), ("--repair", "statistics"), ("--ratio-of", "channels")])
def test_options_of_image_models_are_refused_for_others(
    option: tuple[str, str], llmfold: Cli, session_model: Path, space: Path
) -> None:
    code, _, stderr = llmfold("--model", session_model, "--ratio", 0.2, "--output", space / "out", *option)
    assert code == 2
    assert stderr.startswith(f"llmfold: {option[0]} is {option[1]!r}; choose from")
    assert os.listdir(space) == []


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["classifier.1.bias"]
    save_file(tensors, folder / WEIGHTS)


def with_one_more(folder: Path) -> None:
    save_file({**load_file(folder / WEIGHTS), "head.weight": torch.ones(2)}, folder / WEIGHTS)


def with_integers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "classifier.1.bias": tensors["classifier.1.bias"].long()}, folder / WEIGHTS)


def with_nan(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["classifier.1.bias"][0] = torch.nan
    save_file(tensors, folder / WEIGHTS)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def of_an_unknown_class(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["NoNetForImageClassification"])


def with_code_of_its_own(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "net.Net"})


def of_other_widths(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_sizes=[8, 12])


def of_no_layers(folder: Path) -> None:
    edit_json(folder / "config.json", layer_type="none")


def with_images_of_no_size(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": "large"}}))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (without_a_tensor, "classifier.1.bias is missing"),
        (with_one_more, "head.weight is not part of ResNetForImageClassification"),
        (with_integers, "'classifier.1.bias' (I64)"),
        (with_nan, "NaN or infinity"),
        (pickled, "pickled weights only"),
        (of_an_unknown_class, "has no class NoNetForImageClassification"),
        (with_code_of_its_own, "auto_map"),
        (of_other_widths, "correct its sizes"),
        (of_no_layers, "config.json is refused by transformers"),
        (with_images_of_no_size, "the size of an image is 'large'"),
    ],
)
def test_models_that_are_damaged(
    damage: Callable[[Path], None], word: str, llmfold: Cli, tmp_path: Path, space: Path
) -> None:
    folder = saved(tmp_path / "dense", image_model("basic"))
    damage(folder)
    code, _, stderr = llmfold("--model", folder, "--ratio", 0.3, "--method", "inn", "--output", space / "out")
    assert code == 1, stderr
    assert stderr.count("\n") == 1
    assert word in stderr
    assert os.listdir(space) == []


def test_nothing_is_published_that_does_not_compute_the_same(
    folders: dict[str, Path], llmfold: Cli, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrowing = import_module("llmfold.images.run")
    original = narrowing._as_written

    def disturbed(*arguments: object) -> torch.nn.Module:
        module: torch.nn.Module = original(*arguments)
        with torch.no_grad():
            next(module.parameters()).mul_(1.1)
        return module

    monkeypatch.setattr(narrowing, "_as_written", disturbed)
    arguments = ("--model", folders["basic"], "--ratio", 0.3, "--method", "inn", "--output", space / "out")
    code, _, stderr = llmfold(*arguments)
    assert code == 1
    assert "differ from those in memory" in stderr
    assert os.listdir(space) == []


def test_an_output_is_replaced_only_where_that_is_asked_for(
    folders: dict[str, Path], llmfold: Cli, space: Path
) -> None:
    out = space / "out"
    arguments = ("--model", folders["vit"], "--method", "inn", "--output", out, "--ratio")
    assert llmfold(*arguments, 0.1)[0] == 0
    code, _, stderr = llmfold(*arguments, 0.2)
    assert (code, "pass --overwrite" in stderr) == (2, True)
    assert llmfold(*arguments, 0.2, "--overwrite")[0] == 0
    assert json.loads((out / "report.json").read_text())["config"]["ratio"] == 0.2
    assert os.listdir(space) == ["out"]


def test_what_is_interrupted_leaves_nothing(
    folders: dict[str, Path], llmfold: Cli, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("llmfold.images.run"), "verify_image", interrupted)
    arguments = ("--model", folders["vit"], "--ratio", 0.1, "--method", "inn", "--output", space / "out")
    code, _, stderr = llmfold(*arguments)
    assert (code, "run the same command again" in stderr) == (130, True)
    assert os.listdir(space) == []


def test_doctor_knows_language_models_alone(folders: dict[str, Path], llmfold: Cli) -> None:
    code, _, stderr = llmfold("doctor", folders["vit"])
    assert (code, "holds a ViTForImageClassification" in stderr) == (2, True)


def test_several_processes_are_refused(
    folders: dict[str, Path], llmfold: Cli, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in process.items():
        monkeypatch.setenv(name, value)
    code, _, stderr = llmfold("--model", folders["vit"], "--ratio", 0.1, "--output", space / "out")
    assert (code, "folds in one process" in stderr) == (2, True)
