"""Tiny image models of transformers in folders, as save_pretrained leaves them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
)

SIDE = 16
TOWER: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": SIDE, "patch_size": 8},
}
WORDS: dict[str, Any] = {
    **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 2},
}
NAMES = ("basic", "bottleneck", "vit", "tower", "projection")


def image_model(name: str) -> PreTrainedModel:
    """A random model in evaluation; BatchNorms have statistics and gains that are not those of a new one."""
    torch.manual_seed(0)
    made: PreTrainedModel
    if name == "basic":
        made = ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5)
        )
    elif name == "bottleneck":
        made = ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="bottleneck", num_labels=5)
        )
    elif name == "vit":
        made = ViTForImageClassification(ViTConfig(**TOWER))
    elif name == "tower":
        made = CLIPVisionModel(CLIPVisionConfig(**TOWER))
    elif name == "projection":
        made = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER, projection_dim=8))
    elif name == "headless":  # its last stage is an output, so that no config holds the widths of the rest alone
        made = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    elif name == "seeing":
        made = CLIPForImageClassification(CLIPConfig(text_config=WORDS, vision_config=TOWER))
    elif name == "clip":
        made = CLIPModel(CLIPConfig(text_config=WORDS, vision_config=TOWER, projection_dim=8))
    else:
        made = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    return made.eval()


def saved(folder: Path, model: PreTrainedModel) -> Path:
    """The folder of a model, with the size of its images beside it."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": SIDE}}))
    (folder / "LICENSE").write_text("MIT")
    return folder


def pixels() -> torch.Tensor:
    """Images of a size that all models take."""
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
