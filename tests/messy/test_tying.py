"""A head stored beside the embedding that config.json ties it to: stock transformers says which of the two computes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import CONFIG, SINGLE, edit_json, edit_tensors, fold, logits, parameters, tensors, tiny_model

import llmfold
from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError
from llmfold.evaluation.dense_comparison import DenseComparison
from llmfold.evaluation.loading import Loading
from llmfold.models import EMBEDDING, HEAD, tying
from llmfold.models.tying import stored_shape

Change = Callable[[torch.Tensor], torch.Tensor]
TOKENS = torch.arange(12)[None]


def one_entry(head: torch.Tensor) -> torch.Tensor:
    head[63, 31] += 1
    return head


DIFFERENT: dict[str, Change] = {
    "other": lambda head: head.flip(0),
    "one entry": one_entry,
    "rounding": lambda head: head * (1 + 2**-22),
    "rounded to half": lambda head: head.half(),
}
SAME: dict[str, Change] = {"copy": lambda head: head, "negative zeros": lambda head: torch.where(head == 0, -0.0, head)}


def tied_model(folder: Path, change: Change, family: str = "llama") -> Path:
    tiny_model(folder, family, tie_word_embeddings=True)

    def add_head(stored: dict[str, torch.Tensor]) -> None:
        stored[EMBEDDING][0, 0] = 0
        stored[HEAD] = change(stored[EMBEDDING].clone())

    edit_tensors(folder, add_head)
    return folder


def flag(folder: Path) -> object:
    return json.loads((folder / CONFIG).read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_head_that_differs_is_folded_as_untied(case: str, tmp_path: Path) -> None:
    source = tied_model(tmp_path / "m", DIFFERENT[case])
    report = fold(source, ratio=0, output=tmp_path / "out")
    assert flag(tmp_path / "out") is False
    assert torch.equal(tensors(tmp_path / "out")[HEAD], tensors(source)[HEAD])
    torch.testing.assert_close(logits(tmp_path / "out", TOKENS), logits(source, TOKENS))
    assert report.plan["parameters"]["after"] == parameters(tmp_path / "out")
    plan = llmfold.plan(str(source), ratio=0.2, method="paper")
    assert plan.parameters_before == parameters(tmp_path / "out")


@pytest.mark.parametrize("case", SAME)
def test_a_head_that_is_equal_stays_tied(case: str, tmp_path: Path) -> None:
    source = tied_model(tmp_path / "m", SAME[case])
    fold(source, ratio=0, output=tmp_path / "out")
    assert flag(tmp_path / "out") is True
    assert stored_shape(Checkpoint.open(source)).parameters == parameters(source)
    torch.testing.assert_close(logits(tmp_path / "out", TOKENS), logits(source, TOKENS))


@pytest.mark.parametrize("verify", ["full", "off"])
@pytest.mark.parametrize("method", ["paper", "weights", "self"])
def test_widths_fold_whatever_is_checked_afterwards(method: str, verify: str, tmp_path: Path) -> None:
    source = tied_model(tmp_path / "m", DIFFERENT["other"], "qwen2")
    options = {"num_samples": 8, "sequence_length": 16} if method == "self" else {}
    report = fold(source, method=method, ratio=0.1, verify=verify, output=tmp_path / "out", **options)
    assert report.plan["parameters"]["after"] == parameters(tmp_path / "out")
    assert flag(tmp_path / "out") is False


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    source = tied_model(tmp_path / "m", DIFFERENT["other"])
    found = DenseComparison(source, None, Loading(), tokens=256).measure(source).fidelity
    assert found is not None
    assert found.kl < 1e-6


def test_a_head_of_another_shape_is_named(tmp_path: Path) -> None:
    source = tied_model(tmp_path / "m", lambda head: head[:60].clone())
    with pytest.raises(CheckpointError, match=rf"{HEAD} has shape \[60, 32\]"):
        llmfold.plan(str(source), ratio=0.2, method="paper")


@pytest.mark.parametrize("stated", [False, None])
def test_a_head_that_is_not_there_is_not_made_up(tmp_path: Path, stated: bool | None) -> None:
    """Stock warns, and computes with another random head at every load; the sentence's remedy is what it computes."""
    source = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    shared = logits(source, TOKENS)
    assert HEAD not in tensors(source)
    edit_json(source / CONFIG, tie_word_embeddings=stated)
    assert not torch.equal(logits(source, TOKENS), logits(source, TOKENS))
    with pytest.raises(CheckpointError, match=rf"{HEAD} is not stored.*set tie_word_embeddings to true"):
        llmfold.plan(str(source), ratio=0.2, method="paper")
    edit_json(source / CONFIG, tie_word_embeddings=True)
    fold(source, ratio=0, output=tmp_path / "out")
    torch.testing.assert_close(logits(tmp_path / "out", TOKENS), shared)


def test_what_transformers_4_reads_otherwise_is_refused_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tied_model(tmp_path / "m", DIFFERENT["one entry"])
    monkeypatch.setattr(tying, "version", lambda _: "4.57.1")
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        llmfold.plan(str(source), ratio=0.2, method="paper")
    assert (source / SINGLE).exists()
