"""Sliding windows: a family's layers have those that its stock class reads, whatever else its config holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CONFIG, fold, logits, tiny_model

from llmfold.checkpoint import Checkpoint
from llmfold.models import WINDOW_KEYS, shape_of
from llmfold.models.family_settings import family_settings

Cli = Callable[..., tuple[int, str, str]]
TOKENS = torch.arange(24)[None]
FULL, SLIDING = "full_attention", "sliding_attention"


def windowed(folder: Path, family: str, settings: dict[str, Any]) -> Path:
    """A model whose config has these settings and no other of windows."""
    tiny_model(folder, family)
    raw = json.loads((folder / CONFIG).read_text())
    kept = {key: value for key, value in raw.items() if key not in WINDOW_KEYS}
    (folder / CONFIG).write_text(json.dumps({**kept, **settings}))
    return folder


READ: list[tuple[str, dict[str, Any], tuple[int | None, ...]]] = [
    ("llama", {"sliding_window": 4}, (None, None)),
    ("llama", {"sliding_window": 4, "layer_types": [FULL, SLIDING]}, (None, None)),
    ("llama", {"layer_types": [SLIDING, FULL]}, (None, None)),
    ("llama", {"sliding_window": 0, "use_sliding_window": True, "max_window_layers": 1}, (None, None)),
    ("mistral", {"sliding_window": 4}, (4, 4)),
    ("mistral", {"sliding_window": 4, "use_sliding_window": False}, (4, 4)),
    ("mistral", {"sliding_window": None}, (None, None)),
    ("mistral", {"sliding_window": 4, "layer_types": [FULL, SLIDING]}, (None, 4)),
    ("qwen2", {"sliding_window": 4}, (None, None)),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}, (None, 4)),
    ("qwen3", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}, (4, 4)),
    ("qwen3", {"sliding_window": 4, "use_sliding_window": True, "layer_types": [SLIDING, FULL]}, (4, None)),
    ("qwen3", {"sliding_window": 0}, (None, None)),
]


@pytest.mark.parametrize(("family", "settings", "windows"), READ, ids=str)
def test_a_fold_computes_with_the_windows_that_stock_reads(
    family: str, settings: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    source = windowed(tmp_path / "m", family, settings)
    raw = Checkpoint.open(source).config
    assert family_settings(raw, shape_of(raw)).windows == windows
    fold(source, ratio=0, output=tmp_path / "out")
    ours = logits(tmp_path / "out", TOKENS)
    if "sliding_window" in settings:  # caches of stock fail on layer_types alone
        torch.testing.assert_close(ours, logits(source, TOKENS))


@pytest.mark.parametrize("settings", [READ[1][1], READ[2][1]], ids=str)
def test_leftovers_of_a_llama_touch_neither_samples_nor_the_output(settings: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "self", "ratio": 0.1, "num_samples": 8, "sequence_length": 16}
    reports = [
        fold(windowed(tmp_path / name, "llama", found), output=tmp_path / f"{name}-out", **options)
        for name, found in (("with", settings), ("without", {}))
    ]
    digests = [report.data["tokens_sha256"] for report in reports]
    assert digests[0] == digests[1]
    configs = [json.loads((report.output / CONFIG).read_text()) for report in reports]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("mistral", {"sliding_window": 0}, "set sliding_window"),
        ("mistral", {"sliding_window": -1}, "set sliding_window"),
        ("qwen2", {"sliding_window": 4, "layer_types": [FULL, SLIDING]}, "use_sliding_window"),
        ("qwen3", {"layer_types": [SLIDING, FULL]}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["chunked_attention", FULL]}, "'chunked_attention'"),
        ("qwen2", {"sliding_window": 4, "layer_types": ["linear_attention", FULL]}, "'linear_attention'"),
        ("qwen2", {"layer_types": [FULL]}, "layer_types"),
        ("llama", {"layer_types": [FULL] * 3}, "layer_types"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["fold", "plan"])
def test_windows_that_stock_cannot_run_are_refused_at_opening(
    llmfold: Cli, tmp_path: Path, space: Path, command: str, family: str, settings: dict[str, Any], words: str
) -> None:
    source = windowed(tmp_path / "m", family, settings)
    code, _, stderr = llmfold(command, "--model", source, "--ratio", 0.2, "--output", space / "out")
    assert (code, stderr.count("\n")) == (1, 1)
    assert words in stderr
    assert list(space.iterdir()) == []
