"""``llmfold eval`` of image models: the numbers are those of the model's own forward pass."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from images.data import archive, classes, pictures, scaled
from images.networks import SIDE, image_model, saved
from safetensors.torch import load_file, save_file
from support import edit_json

from llmfold.evaluation import image_bench
from llmfold.evaluation.image_scores import Share

Cli = Callable[..., tuple[int, str, str]]
NAMES = ("basic", "vit", "tower")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models without an image processor, that no test may change."""
    place = tmp_path_factory.mktemp("models")
    found = {name: saved(place / name, image_model(name)) for name in NAMES}
    for folder in found.values():
        (folder / "preprocessor_config.json").unlink()
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("images") / "set.npz")


def noisy(folder: Path, dense: Path) -> Path:
    """The dense model with noise on its weights."""
    folder.mkdir()
    for path in dense.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(3)
    tensors = load_file(dense / WEIGHTS)
    save_file(
        {n: t + 0.3 * t.std(correction=0) * torch.randn_like(t) if t.ndim > 1 else t for n, t in tensors.items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    return folder


def given(folder: Path, what: str) -> torch.Tensor:
    """What the stock class gives on all images."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    with torch.no_grad():
        found = getattr(transformers, name).from_pretrained(folder).eval()(scaled(pictures()))[what]
    assert isinstance(found, torch.Tensor)
    return found.double()


def scores(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("name", ["basic", "vit"])
def test_numbers_of_a_classifier(name: str, models: dict[str, Path], images: Path, llmfold: Cli, space: Path) -> None:
    model = noisy(space / "model", models[name])
    words = ("--model", model, "--against", models[name], "--images", images, "--batch-size", 7)
    labels = torch.from_numpy(classes())
    if name == "vit":  # of two classes
        np.savez(space / "two.npz", images=pictures(), labels=(labels % 2).numpy())
        words, labels = (*words[:5], space / "two.npz"), labels % 2
    code, stdout, stderr = llmfold("eval", *words, "--output", space / "out.json")
    assert code == 0, stderr
    found, one, other = scores(space / "out.json"), given(models[name], "logits"), given(model, "logits")
    for side, logits in (("dense", one), ("model", other)):
        right = float((logits.argmax(1) == labels).double().mean())
        assert found[side]["top1"]["value"] == pytest.approx(right)
        assert found[side]["top1"]["margin"] == pytest.approx(1.96 * math.sqrt(right * (1 - right) / 40), rel=1e-3)
        assert found[side]["top5"] is None
        assert found[side]["parameters"] == sum(
            t.numel() for n, t in load_file(models[name] / WEIGHTS).items() if _is(n)
        )
    close = found["closeness"]
    assert close["agreement"] == pytest.approx(float((one.argmax(1) == other.argmax(1)).double().mean()))
    logs = one.log_softmax(1), other.log_softmax(1)
    assert close["kl"] == pytest.approx(float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean()), rel=1e-4)
    assert close["kl"] > 1e-5
    difference = found["model"]["top1"]["value"] - found["dense"]["top1"]["value"]
    assert close["difference"]["value"] == pytest.approx(difference)
    assert "pixels are scaled to 0..1" in (space / "out.md").read_text()
    assert "top-1 accuracy" in stdout


def _is(name: str) -> bool:
    return "running" not in name and "num_batches" not in name


def test_embeddings_are_compared_by_their_cosine(
    models: dict[str, Path], images: Path, llmfold: Cli, space: Path
) -> None:
    model = noisy(space / "model", models["tower"])
    words = ("--model", model, "--against", models["tower"], "--images", images, "--output", space / "out.json")
    code, stdout, stderr = llmfold("eval", *words)
    assert code == 0, stderr
    one, other = given(models["tower"], "pooler_output"), given(model, "pooler_output")
    cosine = float(((one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)).mean())
    close = scores(space / "out.json")["closeness"]
    assert close["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert cosine < 0.999
    assert (close["agreement"], close["kl"], close["difference"]) == (None, None, None)
    assert "accuracy" not in stdout


def test_top5_of_more_than_five_classes(llmfold: Cli, images: Path, space: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=9)
    transformers.ResNetForImageClassification(config).save_pretrained(space / "model")
    code, _, stderr = llmfold("eval", "--model", space / "model", "--images", images, "--output", space / "out.json")
    assert code == 0, stderr
    top = given(space / "model", "logits").topk(5).indices
    wanted = float((top == torch.from_numpy(classes())[:, None]).any(1).double().mean())
    found = scores(space / "out.json")
    assert found["model"]["top5"]["value"] == pytest.approx(wanted)
    assert (found["dense"], found["closeness"]) == (None, None)


def test_a_program_is_run_where_that_is_allowed(images: Path, llmfold: Cli, space: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(hidden_sizes=[8], depths=[1], num_stages=1, image_size=SIDE, num_labels=5)
    transformers.ConvNextForImageClassification(config).save_pretrained(space / "dense")
    fold = ("--ratio", 0.1, "--method", "magnitude-l2", "--output", space / "out")
    code, _, stderr = llmfold("--model", space / "dense", *fold)
    assert code == 0, stderr
    assert (space / "out" / "model.pt2").exists()
    words = ("eval", "--model", space / "out", "--against", space / "dense", "--images", images, "--limit", 4)
    code, _, stderr = llmfold(*words, "--quiet")
    assert (code, stderr.count("--trust-remote-code"), stderr.count("\n")) == (2, 1, 1)
    code, _, stderr = llmfold(*words, "--trust-remote-code", "--output", space / "out.json")
    assert code == 0, stderr
    found = scores(space / "out.json")
    report = json.loads((space / "out" / "report.json").read_text())["plan"]["parameters"]
    assert found["model"]["parameters"] == report["after"] < found["dense"]["parameters"] == report["before"]
    assert 0 < found["model"]["multiplications"] < found["dense"]["multiplications"]
    np.savez(space / "large.npz", images=np.zeros((2, 24, 24, 3), np.uint8))
    alone = ("--images", space / "large.npz", "--trust-remote-code", "--quiet")
    code, _, stderr = llmfold("eval", "--model", space / "out", *alone)
    assert (code, stderr.count("\n")) == (1, 1)
    assert "out cannot run on images of 3x24x24" in stderr


def test_what_was_measured_is_not_measured_again(
    models: dict[str, Path], images: Path, llmfold: Cli, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", "--model", models["basic"], "--images", images, "--output", space / "out.json")
    assert llmfold(*words)[0] == 0
    first, loaded = (space / "out.json").read_bytes(), []
    load = image_bench.load_image_model
    monkeypatch.setattr(image_bench, "load_image_model", lambda *a, **k: loaded.append(a) or load(*a, **k))
    assert llmfold(*words)[0] == 0
    assert (space / "out.json").read_bytes() == first
    assert loaded == []
    assert llmfold(*words, "--limit", 20)[0] == 0
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("name", "words", "code", "said"),
    [
        ("basic", (), 2, "pass --images"),
        ("basic", ("--images", "IMAGES", "--text", "a.txt"), 2, "--text is not for image models"),
        ("basic", ("--images", "IMAGES", "--tasks", "folding"), 2, "--tasks is not for image models"),
        ("basic", ("--images", "IMAGES", "--batch-size", "auto"), 2, "--batch-size is 'auto'"),
        ("basic", ("--images", "IMAGES", "--limit", "0"), 2, "--limit is 0"),
        ("basic", ("--images", "IMAGES", "--against-revision", "a"), 2, "--against-revision is of --against"),
        ("basic", ("--images", "IMAGES", "--against", "demo"), 2, "no image model"),
        ("basic", ("--images", "IMAGES", "--against", "tower"), 2, "gives 16 numbers an image, and the model 5"),
        ("vit", ("--images", "IMAGES"), 2, "has class 4, and the model has 2"),
        ("tower", ("--images", "LARGE"), 1, "cannot run on images of 3x24x24"),
        ("demo", ("--images", "IMAGES", "--against", "demo"), 2, "--images is for image models, and demo is none"),
    ],
)
def test_bad_input_is_a_sentence(
    name: str,
    words: tuple[str, ...],
    code: int,
    said: str,
    models: dict[str, Path],
    images: Path,
    llmfold: Cli,
    space: Path,
) -> None:
    large = space / "large.npz"
    np.savez(large, images=np.zeros((2, 24, 24, 3), np.uint8))
    places: dict[str, Path] = {**models, "IMAGES": images, "LARGE": large}
    found, stdout, stderr = llmfold("eval", "--model", *(places.get(word, word) for word in (name, *words)), "--quiet")
    assert (found, stdout) == (code, ""), stderr
    assert stderr.count("\n") == 1
    assert said in stderr
    assert os.listdir(space) == ["large.npz"]


def test_a_damaged_model_is_named(models: dict[str, Path], images: Path, llmfold: Cli, space: Path) -> None:
    model = noisy(space / "model", models["basic"])
    tensors = load_file(model / WEIGHTS)
    tensors["classifier.1.weight"] = tensors["classifier.1.weight"].fill_(float("inf"))
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    code, _, stderr = llmfold("eval", "--model", model, "--images", images, "--quiet")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "NaN or infinity" in stderr
    edit_json(model / "config.json", hidden_sizes=[8, 24])
    code, _, stderr = llmfold("eval", "--model", model, "--images", images, "--quiet")
    assert (code, stderr.count("\n")) == (1, 1)


def test_the_interval_is_of_the_mean() -> None:
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert Share.of(values) == Share(0.75, pytest.approx(1.959964 * math.sqrt(0.75 * 0.25 / 4)))
