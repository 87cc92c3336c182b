"""eval/synthetic_checkpoint.py: what it writes loads everywhere, is the same twice, and has the twins it promises."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, file_hashes, fold, logits, tensors

sys.path.insert(0, str(ROOT / "eval"))
from synthetic_checkpoint import SHAPES, config_of, write_checkpoint  # type: ignore[import-not-found]


def small(name: str) -> dict[str, Any]:
    config: dict[str, Any] = config_of(name, layers=2, scale_down=64)
    return config


@pytest.mark.parametrize("name", SHAPES)
def test_stock_transformers_loads_every_shape(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "m", small(name), shard_bytes=200_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert {t.dtype for t in tensors(folder).values()} == {torch.bfloat16}
    assert torch.isfinite(logits(folder, torch.arange(8)[None])).all()


def test_the_seed_decides_every_bit(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / str(i), small("llama-7b"), seed=seed) for i, seed in enumerate((1, 1, 2))]
    first, again, other = map(file_hashes, folders)
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_folding_finds_the_twins(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", small("llama-3-8b"), share=0.25)
    report = fold(source, output=tmp_path / "out", mlp_ratio=0.25)
    for record in report.layers:
        sizes = record["mlp"]["cluster_sizes"]
        assert int(sizes["2"]) == record["mlp"]["before"] // 4
        assert record["mlp"]["inertia"] / record["mlp"]["inertia_bound"] == pytest.approx(1, rel=1e-3)


def test_known_shapes_have_their_sizes() -> None:
    from llmfold.models import shape_of

    billions = {name: shape_of(config_of(name)).parameters / 1e9 for name in SHAPES}
    expected = {"llama-7b": 6.74, "llama-2-13b": 13.0, "llama-3-8b": 8.03, "llama-3-70b": 70.6, "qwen2.5-72b": 72.7}
    assert billions == pytest.approx(expected, rel=2e-3)
