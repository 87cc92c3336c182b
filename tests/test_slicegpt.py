"""eval/slicegpt.py: exact where nothing is cut, counted as it is, closer the wider; its rows stand among the folds'."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, logits, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT / "eval"))
import real_model  # type: ignore[import-not-found]
import slicegpt  # type: ignore[import-not-found]

from llmfold.checkpoint import Checkpoint
from llmfold.models import shape_of

HIDDEN = 32


def tokens(sequences: int, seed: int) -> Tensor:
    return torch.randint(64, (sequences, 12), generator=torch.Generator().manual_seed(seed))


def sliced(folder: Path, width: int, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    slicegpt.slice_model(model, tokens(20, seed=1), width, **options)
    return model


@torch.inference_mode()
def difference(folder: Path, width: int, **options: Any) -> float:
    """Norm of what slicing changes in the logits, relative to theirs."""
    ids = tokens(4, seed=2)
    dense = logits(folder, ids)
    return float((sliced(folder, width, **options)(ids, use_cache=False).logits - dense).norm() / dense.norm())


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {"tie_word_embeddings": True}), ("llama", {"attention_bias": True, "mlp_bias": True}), ("qwen3", {})],
)
def test_nothing_changes_at_full_width(tmp_path: Path, family: str, options: dict[str, Any], normalised: bool) -> None:
    folder = tiny_model(tmp_path / "m", family, **options)
    assert difference(folder, HIDDEN, normalised=normalised) < 1e-5


@pytest.mark.parametrize("normalised", [False, True])
def test_wider_is_closer(session_model: Path, normalised: bool) -> None:
    differences = [difference(session_model, width, normalised=normalised) for width in (8, 16, 24, 28, 32)]
    assert differences == sorted(differences, reverse=True)
    assert differences[0] > 10 * differences[-1]


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_parameters_are_those_of_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    folder, width = tiny_model(tmp_path / "m", **options), 20
    shape = shape_of(Checkpoint.open(folder).config)
    counted = slicegpt.sizes(shape, width)
    layers = sliced(folder, width).model.layers
    parameters = {name: parameter.numel() for name, parameter in layers.named_parameters()}
    shortcuts = sum(size for name, size in parameters.items() if "shortcut" in name)
    assert shortcuts == counted.shortcuts
    assert sum(parameters.values()) == counted.matrices + shortcuts
    dense = AutoModelForCausalLM.from_pretrained(folder).model.layers
    assert sum(parameter.numel() for parameter in dense.parameters()) == counted.dense
    assert counted.removed == 1 - sum(parameters.values()) / counted.dense
    assert counted.removed_without_shortcuts == 1 - (sum(parameters.values()) - shortcuts) / counted.dense


def test_the_width_is_the_closest_to_the_fraction(session_model: Path) -> None:
    shape = shape_of(Checkpoint.open(session_model).config)
    width = slicegpt.width_for(shape, 0.25)
    missed = [abs(slicegpt.sizes(shape, width + step).removed - 0.25) for step in (-1, 0, 1)]
    assert min(missed) == missed[1] < 0.03
    assert slicegpt.sizes(shape, HIDDEN).removed < 0  # shortcut matrices come on top where nothing is cut


def test_its_rows_stand_among_folds_that_remove_as_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def store(name: str, case: dict[str, Any], nll: float, **fields: Any) -> None:
        scored = {"nll": {"text": nll}, "tasks": {}, "protocols": {"text": "protocol"}, "note": "", "seconds": 1.0}
        about = {"machine": "machine", "versions": {}}
        path = tmp_path / "results" / "model" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"case": case, **scored, **about, **fields}))

    store("dense", {"method": "dense", "seed": 0}, 3.0)
    store("fold", {"method": "self", "seed": 0, "mlp_ratio": 0.25}, 3.1, removed_decoder=0.187)
    for name, removed in (("alike", 0.1862), ("apart", 0.3)):
        case = {"method": "slicegpt", "seed": 0, "fraction": removed, "data": f"{name}.txt"}
        fields = {"removed_decoder": removed, "removed_decoder_without_shortcuts": removed + 0.1, "width": 20}
        store(name, case, 3.4, **fields)
    monkeypatch.setattr(real_model, "RESULTS", tmp_path / "results")
    real_model.page()
    lines = (tmp_path / "model-real.md").read_text().splitlines()
    alike, apart = lines.index("## mlp-ratio 0.25"), lines.index("## fraction 0.3")
    rows = [line for line in lines if line.startswith("| slicegpt")]
    assert apart < lines.index(rows[0]) < alike < lines.index(rows[1])
    assert "| 0.400 (1.00) | 18.6% (28.6% without shortcuts), width 20 |" in rows[1]
