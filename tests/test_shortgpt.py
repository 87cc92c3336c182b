"""eval/shortgpt.py: a block that does nothing has no influence, goes first, and is not missed; the rest is counted."""

import itertools
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, logits, tiny_model
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT / "eval"))
import real_model  # type: ignore[import-not-found]
import rivals
import shortgpt  # type: ignore[import-not-found]

BLOCKS, IDLE = 5, 2
DEMO = ROOT / "llmfold" / "demo" / "wiki-llama"


def tokens(sequences: int, seed: int) -> Tensor:
    return torch.randint(64, (sequences, 12), generator=torch.Generator().manual_seed(seed))


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of which one block adds nothing."""
    folder = tiny_model(tmp_path / "m", num_hidden_layers=BLOCKS)
    model = loaded(folder)
    for projection in (model.model.layers[IDLE].self_attn.o_proj, model.model.layers[IDLE].mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    model.save_pretrained(folder)
    return folder


def test_influence_is_one_minus_the_cosine_over_a_block(folder: Path) -> None:
    model, ids = loaded(folder), tokens(20, seed=1)
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states  # the last is behind the norm
    expected = [float(1 - cosine_similarity(a, b, dim=-1).mean()) for a, b in itertools.pairwise(states[:-1])]
    found = shortgpt.influences(model, ids)
    assert found[:-1].tolist() == pytest.approx(expected, abs=1e-6)
    assert found[IDLE] == pytest.approx(0, abs=1e-6)
    assert found.min() == found[IDLE] < 0.1 * found.median()


def test_a_block_that_does_nothing_goes_first_and_is_not_missed(folder: Path) -> None:
    model, ids = loaded(folder), tokens(4, seed=2)
    assert shortgpt.leave_out(model, tokens(20, seed=1), 1) == [IDLE]
    with torch.inference_mode():
        found = model(ids, use_cache=False).logits
    torch.testing.assert_close(found, logits(folder, ids))
    assert IDLE in shortgpt.leave_out(loaded(folder), tokens(20, seed=1), 3)


def test_its_result_stands_among_folds_that_remove_as_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (real_model, rivals):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "README.md").read_text())
    asked = {"folder": DEMO, "name": "model", "note": "", "length": 32, "device": "cpu", "text": [f"{text}:1-2"]}
    drawn = {"data": str(text), "num_samples": 4, "sequence_length": 32, "seed": 0}
    shortgpt.shortened(Namespace(**asked, **drawn, fraction=0.3))
    folds = {"fold": ["dense", "magnitude:ratio=0.33,ratio_of=decoder"], "seed": [0], "tasks": [], "limit": None}
    real_model.run(Namespace(**asked, **folds, scratch=tmp_path))
    (result,) = (json.loads(path.read_text()) for path in (tmp_path / "results" / "model").glob("shortgpt*"))
    blocks = len(loaded(DEMO).model.layers)
    assert len(result["blocks"]) == round(0.3 * blocks) == result["removed_decoder"] * blocks
    real_model.page()
    lines = (tmp_path / "model-real.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith("| shortgpt, data text.txt"))
    assert lines.index("## ratio 0.33, ratio-of decoder") < lines.index(row)
    assert f"| 33.3%: blocks {', '.join(map(str, result['blocks']))} |" in row
