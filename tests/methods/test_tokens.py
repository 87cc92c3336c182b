"""Self tokens and calibration text."""

from pathlib import Path

import pytest
import torch
from support import fold, tiny_model

from llmfold import CheckpointError, UsageError
from llmfold.architectures import LayerShape, ModelShape
from llmfold.architectures.llama import LLAMA
from llmfold.methods.tokens import TokenBudget, doubt, quality, text_tokens, token_budget


def shape(intermediate: int) -> ModelShape:
    return ModelShape(LLAMA, 64, 8, 100, (LayerShape(intermediate, 8, 8),), True, False, False, False)


def test_default_budget_has_four_tokens_per_unit_of_the_widest_block() -> None:
    assert token_budget(shape(512), 2048, None, None) == TokenBudget(128, 256, 2)
    assert token_budget(shape(512), 300, None, None) == TokenBudget(128, 256, 1)
    assert token_budget(shape(512), 2048, 1, 100) == TokenBudget(1, 100, 1)
    wide = token_budget(shape(11008), 2048, None, None)
    assert wide.sequences * wide.length >= 4 * 11008
    assert token_budget(shape(512), 128, None, None).length == 128


def test_sequences_longer_than_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match="--sequence-length 300"):
        token_budget(shape(512), 256, None, 300)


def test_sequences_of_a_document_stand_side_by_side() -> None:
    budget = TokenBudget(5, 3, 2)
    assert (budget.documents, budget.document_length) == (3, 6)
    documents = torch.arange(18).view(3, 6)
    assert torch.equal(budget.cut(documents), torch.arange(15).view(5, 3))


def test_loops_are_told_from_text() -> None:
    loop = torch.tensor([[1, 2, 3, 4] * 16])
    varied = torch.randperm(64)[None]
    assert quality(loop)["repeated_4grams"] > 0.9
    assert quality(varied) == {"distinct": 1.0, "repeated_4grams": 0.0}
    assert doubt(quality(varied)) is None
    assert "loops" in str(doubt(quality(loop)))


def test_short_text_is_refused(data_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"story\.txt holds \d+ tokens but 200 are wanted"):
        text_tokens(data_dir / "models" / "stories260K", "Once upon a time", TokenBudget(10, 20), "story.txt")


def test_calibrated_names_its_text(data_dir: Path, tmp_path: Path) -> None:
    text = data_dir / "text" / "tinystories-train-head.txt"
    report = fold(
        data_dir / "models" / "stories260K",
        method="calibrated",
        data=str(text),
        mlp_ratio=0.1,
        num_samples=8,
        sequence_length=64,
        refine=0,
        output=tmp_path / "out",
    )
    assert report.data["data"] == "outside text: tinystories-train-head.txt"


def test_calibrated_needs_data_and_data_needs_calibrated(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    for options in ({"method": "calibrated"}, {"method": "paper", "data": "x.txt"}):
        with pytest.raises(UsageError, match="--data"):
            fold(model, ratio=0.2, output=tmp_path / "out", **options)


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises((UsageError, CheckpointError), match=r"no-such-text\.txt"):
        fold(tiny_model(tmp_path / "m"), method="calibrated", data="no-such-text.txt", ratio=0.2, output=tmp_path / "o")
