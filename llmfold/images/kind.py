"""Whether a model is for images, and of which class: told by its config alone, without torch."""

from collections.abc import Mapping
from typing import Any

CLASSIFIER = "ForImageClassification"
OTHERS = ("ResNetModel", "ViTModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")
"""Classes beside the classifiers."""
_BY_TYPE = {
    **{"resnet": "ResNetForImageClassification", "vit": "ViTForImageClassification"},
    **{"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModel"},
}
"""By ``model_type``, where a config names no class."""


def image_class(config: Mapping[str, Any]) -> str | None:
    """Name of the class of transformers that a raw config asks for, None where that is not for images."""
    named = config.get("architectures")
    if named:
        name = named[0] if isinstance(named, list) else None
        return name if isinstance(name, str) and (name.endswith(CLASSIFIER) or name in OTHERS) else None
    model_type = config.get("model_type")
    return _BY_TYPE.get(model_type) if isinstance(model_type, str) else None
