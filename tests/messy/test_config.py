"""Keys of a config that some loaders act on and others do not: an output states what is true of it."""

import json
from pathlib import Path

import pytest
import torch
from support import edit_json, fold, logits


@pytest.mark.parametrize("attention_ratio", [0.0, 0.5])
def test_an_output_is_not_computed_in_slices(model: Path, tmp_path: Path, attention_ratio: float) -> None:
    edit_json(model / "config.json", pretraining_tp=4)
    out = fold(model, mlp_ratio=0.27, attention_ratio=attention_ratio, output=tmp_path / "out").output
    config = json.loads((out / "config.json").read_text())
    assert config["intermediate_size"] % 4
    assert config["pretraining_tp"] == 1
    assert logits(out, torch.tensor([[1, 2, 3]])).isfinite().all()


def test_no_key_is_added(model: Path, tmp_path: Path) -> None:
    edit_json(model / "config.json", pretraining_tp=None)
    out = fold(model, ratio=0.2, output=tmp_path / "out").output
    assert "pretraining_tp" not in json.loads((out / "config.json").read_text())
