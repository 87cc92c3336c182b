"""Plans of image models: widths that stock classes take, and as many as the ratio leaves."""

import json
from pathlib import Path

import pytest

from images.networks import image_model, saved
from llmfold.checkpoint import Source
from llmfold.images import plan as module
from llmfold.images.config import ImageConfig
from llmfold.images.kind import image_class
from llmfold.images.model import ImageModel, open_image_model
from llmfold.images.plan import plan_image
from llmfold.images.widths import stock_widths, width_keys


def opened(tmp_path: Path, name: str) -> ImageModel:
    folder = saved(tmp_path / name, image_model(name))
    kind = image_class(json.loads((folder / "config.json").read_text()))
    assert kind is not None
    return open_image_model(Source(folder, name, None), kind)


def config(ratio: float) -> ImageConfig:
    return ImageConfig("model", ratio, method="paper")


@pytest.mark.parametrize("name", ["basic", "bottleneck", "vit", "convnext"])
def test_the_plan_meets_the_ratio_and_the_next_wider_one_does_not(name: str, tmp_path: Path) -> None:
    model = opened(tmp_path, name)
    plans = [plan_image(model, config(ratio)) for ratio in (0.05, 0.1, 0.15, 0.2)]
    for ratio, plan in zip((0.05, 0.1, 0.15, 0.2), plans, strict=True):
        assert plan.ratio >= ratio
        wider = [other for other in plans if other.module.after > plan.module.after]
        assert all(1 - other.module.after / other.module.before < ratio for other in wider)
    assert plans[0].stock == (name != "convnext")


def test_what_already_meets_the_ratio_keeps_all_its_neurons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fractions = opened(tmp_path, "vit"), []
    monkeypatch.setattr(module, "stock_widths", lambda m, keys, f: fractions.append(f) or stock_widths(m, keys, f))
    plan_image(model, config(0.05))
    assert fractions[0] == 0.0
    assert len(fractions) > 1
    fractions.clear()
    assert module._by_parameters(model, width_keys(model), 0.0, set(model.module.state_dict()))
    assert fractions == [0.0]


def test_a_program_beside_the_weights_is_written_too(tmp_path: Path) -> None:
    stock, other = (plan_image(opened(tmp_path, name), config(0.1)) for name in ("vit", "convnext"))
    assert stock.bytes_written == stock.bytes_after
    assert other.bytes_written == other.bytes_after + 4 * other.module.after


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    model = opened(tmp_path, "basic")
    assert model.checkpoint is not None
    assert plan_image(model, config(0.0)).bytes_before == model.checkpoint.size_in(None)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("basic", ["embedding_size", "hidden_sizes"]),
        ("vit", ["intermediate_size"]),
        ("clip", ["vision_config.intermediate_size", "text_config.intermediate_size"]),
        ("seeing", ["vision_config.intermediate_size"]),
        ("convnext", []),
        ("headless", []),
    ],
)
def test_keys_hold_all_couplings_and_nothing_else(name: str, keys: list[str], tmp_path: Path) -> None:
    assert [key.path for key in width_keys(opened(tmp_path, name))] == keys


def test_widths_that_would_drop_a_shortcut_are_not_taken(tmp_path: Path) -> None:
    """A projection stands where widths differ: eight and sixteen channels may not both become one."""
    model = opened(tmp_path, "bottleneck")
    keys = width_keys(model)
    assert stock_widths(model, keys, 0.5) is not None
    assert stock_widths(model, keys, 0.97) is None


def test_a_part_that_an_older_release_wrote_twice_is_changed_in_both_places(tmp_path: Path) -> None:
    folder = saved(tmp_path / "clip", image_model("clip"))
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config_dict"] = dict(raw["vision_config"])
    (folder / "config.json").write_text(json.dumps(raw))
    model = open_image_model(Source(folder, "clip", None), "CLIPModel")
    written = plan_image(model, config(0.05)).raw
    assert written["vision_config_dict"]["intermediate_size"] == written["vision_config"]["intermediate_size"] < 24
