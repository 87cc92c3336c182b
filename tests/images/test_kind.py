"""Which configs are known to be of image models."""

from typing import Any

import pytest

from llmfold.images.kind import image_class


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}, "ResNetForImageClassification"),
        ({"architectures": ["DeiTForImageClassification"]}, "DeiTForImageClassification"),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "CLIPModel"),
        ({"model_type": "vit"}, "ViTForImageClassification"),
        ({"architectures": None, "model_type": "clip_vision_model"}, "CLIPVisionModel"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, None),
        ({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}, None),
        ({"architectures": ["ViTForMaskedImageModeling"], "model_type": "vit"}, None),
        ({"architectures": "ResNetForImageClassification"}, None),
        ({"architectures": [7]}, None),
        ({"model_type": ["resnet"]}, None),
        ({}, None),
    ],
)
def test_the_class_that_a_config_names(config: dict[str, Any], name: str | None) -> None:
    assert image_class(config) == name
