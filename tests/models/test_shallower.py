"""A checkpoint without some blocks, against the stock model whose list of layers is cut by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CONFIG, FAMILIES, fold, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Checkpoint
from llmfold.methods.base import read_layer
from llmfold.models.family_settings import family_settings
from llmfold.models.shallower import ShallowCheckpoint, block_of, renamed, shallow_config
from llmfold.models.tying import running_shape
from llmfold.pipeline.verification import streamed_logits

LAYERS, REMOVED, KEPT = 5, (1, 3), [0, 2, 4]
IDS = (torch.arange(24) * 7 % 64).view(2, 12)
WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}


def cut_by_hand(folder: Path) -> torch.Tensor:
    """Logits of the stock model with blocks taken out of it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.layers = nn.ModuleList(model.model.layers[index] for index in KEPT)
    if hasattr(model.config, "layer_types") and model.config.layer_types:
        model.config.layer_types = [model.config.layer_types[index] for index in KEPT]
    model.config.num_hidden_layers = len(KEPT)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in FAMILIES),
        ("qwen2", WINDOWS),
        ("qwen3", WINDOWS),
        ("mistral", {"sliding_window": 5}),
    ],
)
def test_it_computes_what_the_blocks_that_stay_compute(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    folder = tiny_model(tmp_path / "m", family, num_hidden_layers=LAYERS, **options)
    view = ShallowCheckpoint(Checkpoint.open(folder), REMOVED, {})
    shape = running_shape(view)
    shape.check_stored(view.shapes)
    assert len(shape.layers) == len(KEPT)
    torch.testing.assert_close(streamed_logits(view, shape, IDS), cut_by_hand(folder), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", ["layer_types", "max_window_layers"])
def test_windows_stay_with_their_blocks(tmp_path: Path, given: str) -> None:
    folder = tiny_model(tmp_path / "m", "qwen2", num_hidden_layers=LAYERS, **WINDOWS)
    raw = json.loads((folder / CONFIG).read_text())
    if given == "max_window_layers":
        del raw["layer_types"]
    whole = Checkpoint.open(folder)
    view = ShallowCheckpoint(whole, REMOVED, {})
    view.config = shallow_config(raw, REMOVED)
    windows = family_settings(whole.config, running_shape(whole)).windows
    assert windows == (None, None, 5, 5, 5)
    assert family_settings(view.config, running_shape(view)).windows == tuple(windows[index] for index in KEPT)


def test_widths_stay_with_their_blocks(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", num_hidden_layers=LAYERS)
    report = fold(folder, output=tmp_path / "out", layers={1: {"mlp": 0.5}, 2: {"mlp": 0.25}, 4: {"attention": 0.5}})
    whole = Checkpoint.open(report.output)
    view = ShallowCheckpoint(whole, REMOVED, {})
    assert [layer.widths() for layer in running_shape(view).layers] == [
        running_shape(whole).layers[index].widths() for index in KEPT
    ]


def test_tensors_that_were_repaired_are_read_in_the_dtype_that_is_stored(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", num_hidden_layers=LAYERS, dtype=torch.bfloat16)
    whole, name = Checkpoint.open(folder), "model.layers.1.mlp.down_proj.weight"
    new = torch.randn(whole.tensors[name].shape)
    view = ShallowCheckpoint(whole, REMOVED, {name: new})
    assert torch.equal(view.read(name), new.bfloat16())
    assert torch.equal(view.read(name, range(3, 5)), new[3:5].bfloat16())
    assert torch.equal(read_layer(view, running_shape(view), 1)["down"], new.bfloat16())
    assert torch.equal(
        view.read("model.layers.2.mlp.down_proj.weight"), whole.read("model.layers.4.mlp.down_proj.weight")
    )
    assert view.fingerprint() == whole.fingerprint()


def test_names_are_renumbered() -> None:
    assert renamed("model.layers.14.mlp.up_proj.weight", 14, (2, 14 - 1, 20)) == "model.layers.12.mlp.up_proj.weight"
    assert block_of("model.layers.14.mlp.up_proj.weight") == 14
    assert block_of("model.embed_tokens.weight") is None
