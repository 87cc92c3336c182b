"""eval/osscar.py: MLPs become what a solver makes of their Grams, on what the model narrowed so far gives."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT / "eval"))
import osscar  # type: ignore[import-not-found]
import rivals

WIDTH = 30
CODE = """
import torch
def OSSCAR_fastprune(W, XTX, XTY, num_cin, num_sp, update_iter=1):
    kept = XTX.diagonal().argsort(descending=True)[:num_sp].sort().values
    rows = torch.zeros_like(W)
    rows[kept] = torch.linalg.solve(XTX[kept][:, kept], XTY[kept])
    return rows, None
def OSSCAR_local_search(W, XTX, XTY, num_cin, max_iter, num_swap):
    raise NotImplementedError("searched")
"""
"""What a checkout of the code offers, in the simplest form."""


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens() -> Tensor:
    return torch.randint(64, (20, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "m", num_hidden_layers=3)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (checkout := tmp_path / "checkout").mkdir()
    (checkout / "prune_algo.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "prune_algo", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return checkout


def test_all_neurons_change_nothing_and_the_grams_are_those_of_the_narrowed_model(folder: Path) -> None:
    grams: list[Tensor] = []

    def solve(rows: Tensor, gram: Tensor, products: Tensor, width: int) -> Tensor:
        torch.testing.assert_close(products, gram @ rows)
        grams.append(gram)
        found = rows.clone()
        found[width:] = 0
        return found

    model, dense = loaded(folder), loaded(folder)
    osscar.prune(model, tokens(), 48, solve)
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens()).logits, dense(tokens()).logits)
    grams.clear()
    osscar.prune(model := loaded(folder), tokens(), WIDTH, solve)
    seen: list[Tensor] = []
    hook = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(tokens())
    hook.remove()
    rows = seen[0].flatten(0, 1)
    gram = grams[2][:WIDTH, :WIDTH] - osscar.RIDGE * grams[2].diagonal().mean() / (1 + osscar.RIDGE) * torch.eye(WIDTH)
    torch.testing.assert_close(gram, rows.T @ rows, rtol=1e-3, atol=1e-2)
    assert all(layer.mlp.gate_proj.weight.shape == (WIDTH, 32) for layer in model.model.layers)


def test_its_result_counts_what_went(folder: Path, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}

    def run(arguments: Namespace, case: Any, change: Any) -> None:
        model = loaded(folder)
        found.update(change(model, tokens(), rivals.shape_of(rivals.Checkpoint.open(folder).config)), name=case.file)
        assert model.model.layers[1].mlp.down_proj.weight.shape == (32, WIDTH)

    monkeypatch.setattr(rivals, "run", run)
    given = {"published": code, "width": WIDTH, "fraction": 0.2, "data": "text.txt", "num_samples": 4, "seed": 0}
    asked = Namespace(**given, sequence_length=12, local_search=False)
    osscar.pruned(asked)
    per_layer = 2 * 32 + (2 * 4 + 2 * 2) * 8 * 32 + 3 * 32 * 48
    assert found["removed_decoder"] == pytest.approx(3 * 32 * 18 / per_layer)
    assert found["name"].startswith("osscar")
    asked.local_search = True
    with pytest.raises(NotImplementedError, match="searched"):
        osscar.pruned(asked)
