"""Models that overflow float16 and not float32: judged in the dtype of the arithmetic."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reading import teach
from support import edit_tensors, logits, tiny_model
from torch import Tensor

SENTENCE = "overflows float16 in layer 1: --compute-dtype float32"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """Stored in float16, all weights within its range; hidden states after layer 1 are not."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"].mul_(3e4)

    folder = teach(tiny_model(tmp_path / "loud", dtype=torch.float16))
    edit_tensors(folder, change)
    assert logits(folder, torch.tensor([[1, 2, 3]])).isfinite().all()
    return folder


@pytest.mark.parametrize("method", ["paper", "self"])
def test_what_is_sound_in_float32_is_folded(llmfold: Run, loud: Path, tmp_path: Path, method: str) -> None:
    tokens = ("--num-samples", 8, "--sequence-length", 16, "--refine", 0) if method == "self" else ()
    out = tmp_path / "out"
    arguments = ("--model", loud, "--ratio", 0.2, "--method", method, "--output", out, "--fidelity-tokens", 64, *tokens)
    code, _, err = llmfold(*arguments, "--compute-dtype", "float16")
    assert (code, SENTENCE in err) == (1, True), err
    assert not out.exists()
    code, _, err = llmfold(*arguments, "--overwrite")
    assert code == 0, err
    assert logits(out, torch.tensor([[1, 2, 3]])).isfinite().all()


def test_eval_names_the_layer(llmfold: Run, loud: Path, prose: Path) -> None:
    arguments = ("eval", "--model", loud, "--text", prose, "--sequence-length", 50)
    code, _, err = llmfold(*arguments, "--compute-dtype", "float16")
    assert (code, SENTENCE in err) == (1, True), err
    assert llmfold(*arguments)[0] == 0


def test_weights_that_the_dtype_written_cannot_hold_are_named(llmfold: Run, model: Path, tmp_path: Path) -> None:
    edit_tensors(model, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].mul_(1e6))
    arguments = ("--model", model, "--ratio", 0.2, "--method", "paper", "--output", tmp_path / "out")
    code, _, err = llmfold(*arguments, "--dtype", "float16")
    assert (code, "'model.layers.1.mlp.down_proj.weight' overflows float16" in err) == (1, True), err
    assert not (tmp_path / "out").exists()
