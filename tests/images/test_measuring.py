"""What an image model is measured on."""

import json
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from images.networks import image_model, saved
from llmfold.checkpoint import Source
from llmfold.images.config import ImageConfig
from llmfold.images.measuring import implied_inputs
from llmfold.images.model import open_image_model
from llmfold.inversion.deep import InversionOptions


@pytest.mark.parametrize(("side", "inverted"), [(32, 32), (96, 64), (160, 80)])
def test_large_images_are_inverted_at_half_their_size(
    side: int, inverted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = partial(InversionOptions, count=2, steps=1)
    monkeypatch.setattr(import_module("llmfold.modules.fold"), "InversionOptions", short)
    folder = saved(tmp_path / "net", image_model("basic"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": side}))
    model = open_image_model(Source(folder, "net", None), "ResNetForImageClassification")
    heard: list[str] = []
    images = implied_inputs(model, ImageConfig("net", 0.3), heard.append)
    assert tuple(images.shape) == (2, 3, inverted, inverted)
    assert heard == ["inverting images: 0 of 1"]
