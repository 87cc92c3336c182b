"""Self tokens and calibration text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reading import teach
from support import fold, tiny_model

from llmfold import CheckpointError, FoldConfig, UsageError
from llmfold.data.tokens import TokenBudget, loop_warning, resolve_effort, text_tokens, token_budget, token_statistics
from llmfold.effort import EFFORTS
from llmfold.models import ARCHITECTURES, LayerShape, ModelShape


def shape(intermediate: int, positions: int = 2048) -> ModelShape:
    layers = (LayerShape(intermediate, 8, 8),)
    return ModelShape(ARCHITECTURES["llama"], 64, 8, 100, layers, True, False, False, False, positions)


def asked(effort: str = "normal", **options: Any) -> FoldConfig:
    return FoldConfig("m", ratio=0.2, effort=effort, **options)


@pytest.mark.parametrize("name", EFFORTS)
def test_budgets_are_those_of_the_effort(name: str) -> None:
    effort = EFFORTS[name]
    for neurons, positions in ((512, 2048), (512, 128), (700, effort.length + 1), (4097, 2048), (300_000, 2048)):
        found = token_budget(asked(name), shape(neurons, positions))
        own = effort.wide if neurons > 4096 and effort.wide else effort
        assert found.length == min(own.length, positions)
        assert found.sequences % 8 == 0
        wanted = max(own.tokens, min(effort.most, 64 * neurons), effort.tokens_per_unit * neurons)
        assert 0 <= found.sequences * found.length - wanted < 8 * found.length
        assert found.windows == max(1, min(2, positions // found.length, 512 // found.length, found.sequences // 64))


def test_steps_are_those_of_the_effort_whatever_the_width() -> None:
    for neurons in (512, 1536, 40_000):
        assert [resolve_effort(asked(effort), shape(neurons)).refine for effort in EFFORTS] == [0, 200, 1_600]


def test_explicit_numbers_win() -> None:
    assert token_budget(asked(num_samples=1, sequence_length=100), shape(512)) == TokenBudget(1, 100, 1)
    found = resolve_effort(asked("best", num_samples=3, refine=7), shape(512, 256))
    assert (found.num_samples, found.sequence_length, found.refine) == (3, 256, 7)


def test_resolved_options_are_whole_and_tell_efforts_apart() -> None:
    found = [resolve_effort(asked(effort), shape(512)) for effort in EFFORTS]
    for config, effort in zip(found, EFFORTS.values(), strict=True):
        assert (config.sequence_length, config.refine) == (effort.length, effort.refine)
        assert config.num_samples == effort.tokens // effort.length
    assert len({str(c.work()) for c in found}) == len(found)
    assert resolve_effort(found[0], shape(512)) == found[0]
    paper = asked(method="paper")
    assert resolve_effort(paper, shape(512)) == paper
    own, pruner = (resolve_effort(asked(**o), shape(512)) for o in ({}, {"method": "wanda-sp", "data": "self"}))
    assert (pruner.num_samples, pruner.sequence_length) == (own.num_samples, own.sequence_length)
    assert pruner.refine is None


def test_sequences_longer_than_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match="--sequence-length 300"):
        token_budget(asked(sequence_length=300), shape(512, 256))


def test_sequences_of_a_document_stand_side_by_side() -> None:
    budget = TokenBudget(5, 3, 2)
    assert (budget.documents, budget.document_length) == (3, 6)
    documents = torch.arange(18).view(3, 6)
    assert torch.equal(budget.cut(documents), torch.arange(15).view(5, 3))


def test_loops_are_told_from_text() -> None:
    loop = torch.tensor([[1, 2, 3, 4] * 16])
    varied = torch.randperm(64)[None]
    assert token_statistics(loop)["repeated_4grams"] > 0.9
    assert token_statistics(varied) == {"distinct": 1.0, "repeated_4grams": 0.0}
    assert loop_warning(token_statistics(varied)) is None
    assert "loops" in str(loop_warning(token_statistics(loop)))


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
    model = teach(tiny_model(tmp_path / "m"))
    with pytest.raises((UsageError, CheckpointError), match=r"no-such-text\.txt"):
        fold(model, method="calibrated", data="no-such-text.txt", ratio=0.2, output=tmp_path / "o")
