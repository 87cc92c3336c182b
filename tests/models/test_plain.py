"""Configs read without transformers give the shapes that transformers gives; whatever is unusual is left to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import FAMILIES, tiny_model

from llmfold.demo import demo_folder
from llmfold.models import registry, shape_of
from llmfold.models.plain import plain_settings


def raw(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.mark.parametrize("family", [*FAMILIES, "demo"])
def test_shapes_are_those_of_transformers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = raw(demo_folder() if family == "demo" else tiny_model(tmp_path / family, family))
    assert plain_settings(config) is not None
    shape = shape_of(config)
    monkeypatch.setattr(registry, "plain_settings", lambda _: None)
    assert shape == shape_of(config)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma"},
        {"hidden_act": "gelu"},
        {"hidden_size": "192"},
        {"hidden_size": 190},
        {"num_hidden_layers": True},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"layer_types": ["sliding_attention"]},
        {"per_layer_config": {}},
        {"model_type": "qwen3", "head_dim": None},
    ],
    ids=str,
)
def test_anything_unusual_is_left_to_transformers(change: dict[str, Any]) -> None:
    assert plain_settings({**raw(demo_folder()), **change}) is None


@pytest.mark.parametrize("name", ["num_key_value_heads", "tie_word_embeddings", "vocab_size", "intermediate_size"])
def test_defaults_are_left_to_transformers(name: str) -> None:
    config = raw(demo_folder())
    del config[name]
    assert plain_settings(config) is None
