"""``llmfold compare`` of image models: tables, pictures, results that are kept, refusals."""

import json
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from images.data import archive
from images.networks import image_model, saved

from llmfold.errors import UsageError
from llmfold.experiments import image_compare
from llmfold.experiments.image_compare import compare_images
from llmfold.experiments.image_settings import ImageSettings, ImageVariant
from llmfold.experiments.variants import parse_variants
from llmfold.inversion.deep import InversionOptions

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet without an image processor, that no test may change."""
    folder = saved(tmp_path_factory.mktemp("models") / "basic", image_model("basic"))
    (folder / "preprocessor_config.json").unlink()
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("images") / "set.npz")


@pytest.fixture
def settings(model: Path, images: Path, space: Path) -> Callable[..., ImageSettings]:
    def make(**options: Any) -> ImageSettings:
        defaults = {"model": str(model), "methods": "paper,magnitude-l2", "images": str(images), "ratio": (0.2,)}
        return ImageSettings(**{**defaults, "output": space / "table", **options})

    return make


@pytest.fixture
def inversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the inversions that are made, short ones."""
    seeds: list[int] = []
    short = partial(InversionOptions, count=8, steps=2)
    monkeypatch.setattr(import_module("llmfold.modules.fold"), "InversionOptions", short)
    make = image_compare.inputs_for

    def counted(model: Any, config: Any, listener: Any) -> Any:
        seeds.append(config.seed)
        return make(model, config, listener)

    monkeypatch.setattr(image_compare, "inputs_for", counted)
    return seeds


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods of the folds that are made."""
    made: list[str] = []
    fold = image_compare.fold_image

    def counted(model: Any, plan: Any, *rest: Any) -> Any:
        made.append(plan.config.method)
        return fold(model, plan, *rest)

    monkeypatch.setattr(image_compare, "fold_image", counted)
    return made


def read(space: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((space / "table" / "compare.json").read_text())
    return content


def test_numbers_are_those_of_the_fold(
    settings: Callable[..., ImageSettings], model: Path, images: Path, llmfold: Cli, space: Path
) -> None:
    found = compare_images(settings(keep=True, methods="magnitude-l2"))
    assert sorted(os.listdir(space / "table")) == [
        *("compare-multiplications.svg", "compare.json", "compare.md", "compare.svg", "report.html")
    ]
    (run,) = read(space)["runs"]
    fold = space / "table-models" / "magnitude-l2-ratio-0.2-seed-0"
    words = ("--model", fold, "--against", model, "--images", images, "--output", space / "out.json")
    assert llmfold("eval", *words)[0] == 0
    scores = json.loads((space / "out.json").read_text())
    one, dense, close = scores["model"], scores["dense"], scores["closeness"]
    assert (run["accuracy"], run["margin"]) == (one["top1"]["value"], one["top1"]["margin"])
    assert (run["agreement"], run["kl"], run["top5"]) == (close["agreement"], close["kl"], None)
    assert run["difference"] == pytest.approx(run["accuracy"] - dense["top1"]["value"])
    assert run["removed"] == pytest.approx(1 - one["parameters"] / dense["parameters"])
    assert run["saved"] == pytest.approx(1 - one["multiplications"] / dense["multiplications"])
    assert 0.2 <= run["removed"] < 0.5
    assert found.dense.accuracy is not None
    assert found.dense.accuracy.mean == dense["top1"]["value"]


def test_a_method_that_measures_nothing_takes_no_images_from_the_next(settings: Callable[..., ImageSettings]) -> None:
    found = compare_images(settings(methods="paper,self", seeds=1))
    assert [row.errors for row in found.rows] == [(), ()]


def test_all_seeds_of_all_methods_at_all_ratios(
    settings: Callable[..., ImageSettings], inversions: list[int], space: Path
) -> None:
    methods = "self,paper,paper:repair=statistics"
    found = compare_images(settings(methods=methods, ratio=(0.1, 0.3), seeds=2))
    assert [(row.method, row.seeds) for row in found.rows] == [
        (name, 2 if "self" in name or "statistics" in name else 1) for _ in range(2) for name in methods.split(",")
    ]
    assert inversions == [0, 1]  # once a seed, for two methods and two ratios
    assert not any(row.errors for row in found.rows)
    page = (space / "table" / "compare.md").read_text()
    assert page.count("## ratio") == 2
    assert "images inverted from the model's own running statistics" in page
    assert "cosine" not in page
    for name, words in (("compare.svg", "parameters"), ("compare-multiplications.svg", "multiplications")):
        picture = (space / "table" / name).read_text()
        assert f"fraction of {words} removed" in picture
        assert picture in (space / "table" / "report.html").read_text()
    assert not (space / "table-models").exists()


def test_results_are_used_again_for_the_same_settings_only(
    settings: Callable[..., ImageSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare_images(settings())
    made = counting(monkeypatch)
    assert compare_images(settings()) == first
    assert made == []
    compare_images(settings(methods="paper,magnitude-l1"))
    assert made == ["magnitude-l1"]
    compare_images(settings(methods="paper", limit=20))
    compare_images(settings(methods="paper", recompute=True))
    assert made == ["magnitude-l1", "paper", "paper"]


def test_a_fold_that_fails_is_a_row_with_its_reason(settings: Callable[..., ImageSettings], space: Path) -> None:
    found = compare_images(settings(ratio=(0.2, 0.999), methods="paper"))
    assert found.rows[0].accuracy is not None
    assert found.rows[1].accuracy is None
    assert "--ratio 0.999 is more than" in found.rows[1].errors[0]
    assert "--ratio 0.999 is more than" in (space / "table" / "compare.md").read_text()


def test_a_tower_is_compared_by_its_embeddings(images: Path, llmfold: Cli, space: Path) -> None:
    tower = saved(space / "tower", image_model("tower"))
    (tower / "preprocessor_config.json").unlink()
    words = ("--ratio", 0.1, "--methods", "paper,magnitude-l2", "--images", images, "--output", space / "table")
    code, stdout, stderr = llmfold("compare", "--model", tower, *words)
    assert code == 0, stderr
    assert "cosine" in stdout
    assert "top-1" not in stdout
    runs = read(space)["runs"]
    assert all(run["accuracy"] is None and 0 < run["cosine"] < 1 for run in runs)
    assert "cosine with dense" in (space / "table" / "compare.svg").read_text()


def test_variants() -> None:
    found = parse_variants("self,paper:cluster=kmeans,paper,ifm:repair=statistics,magnitude-l1", ImageVariant)
    assert [variant.random for variant in found] == [True, True, False, True, False]
    assert [variant.label for variant in found][1] == "paper:cluster=kmeans"
    for text, words in {
        "flap": "choose from self, paper, ifm",
        "paper:refine=0": "may set attention_ratio, cluster",
    }.items():
        with pytest.raises(UsageError, match=words):
            parse_variants(text, ImageVariant)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--text": "a.txt"}, "--text is not for image models"),
        ({"--mlp-ratio": "0.1"}, "--mlp-ratio is not for image models"),
        ({"--images": None}, "--images is missing"),
        ({"--ratio": None}, "--ratio is missing"),
        ({"--ratio": "0.1,0.1"}, "names a fraction twice"),
        ({"--ratio-of": "decoder"}, "--ratio-of is 'decoder'"),
        ({"--methods": "flap"}, "no method 'flap'"),
        ({"--methods": "self:repair=variance"}, "--method self repairs by itself"),
        ({"--model": "demo"}, "--images is for image models, and demo is none"),
        ({"--model": "demo", "--images": None, "--text": None}, "--text is missing"),
    ],
)
def test_bad_input_is_a_sentence(
    change: dict[str, str | None], said: str, model: Path, images: Path, llmfold: Cli, space: Path
) -> None:
    words: dict[str, Any] = {"--model": model, "--images": images, "--ratio": "0.1", "--methods": "paper"}
    words = {**words, "--output": space / "table", **change}
    given = [part for pair in words.items() if pair[1] is not None for part in pair]
    code, stdout, stderr = llmfold("compare", *given)
    assert (code, stdout) == (2, ""), stderr
    assert stderr.count("\n") == 1
    assert said in stderr
    assert os.listdir(space) == []
