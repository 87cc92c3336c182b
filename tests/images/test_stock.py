"""What a stock class looks at: sizes of images from either config."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPModel, ResNetForImageClassification, ViTForImageClassification

from images.networks import image_model
from llmfold.images.stock import USUAL_SIDE, example_inputs


@pytest.mark.parametrize(
    ("told", "size"),
    [
        (None, (USUAL_SIDE, USUAL_SIDE)),
        ({"size": 96}, (96, 96)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 112, "width": 64}}, (112, 64)),
        ({"size": {"shortest_edge": 256}, "crop_size": 112, "do_center_crop": False}, (256, 256)),
        ({"do_resize": True}, (USUAL_SIDE, USUAL_SIDE)),
    ],
)
def test_the_size_of_images_is_that_of_the_preprocessor(
    told: dict[str, Any] | None, size: tuple[int, int], tmp_path: Path
) -> None:
    if told is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    (pixels,) = example_inputs(ResNetForImageClassification, image_model("basic").config, tmp_path)
    assert tuple(pixels.shape[1:]) == (3, *size)


def test_a_config_that_says_the_size_comes_first_and_text_is_put_before_images(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 96}))
    (pixels,) = example_inputs(ViTForImageClassification, image_model("vit").config, tmp_path)
    assert tuple(pixels.shape[1:]) == (3, 16, 16)
    words, pixels = example_inputs(CLIPModel, image_model("clip").config, tmp_path)
    assert words.shape[1] <= 12
    assert not words.is_floating_point()
    assert tuple(pixels.shape[1:]) == (3, 16, 16)
