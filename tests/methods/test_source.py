"""Tokens of a fold: sampled by several processes, batch by batch, as by one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from support import tiny_model

from llmfold import FoldConfig
from llmfold.checkpoint import Checkpoint
from llmfold.data import tokens as tk
from llmfold.data.tokens import TOKENS_FILE
from llmfold.methods import source
from llmfold.methods.base import FoldContext
from llmfold.methods.source import BATCH_FOLDER, sample_batches, token_source
from llmfold.models.tying import running_shape


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FoldContext]:
    monkeypatch.setattr(tk, "BATCH", 3)
    checkpoint = Checkpoint.open(tiny_model(tmp_path / "m"))
    config = FoldConfig(str(tmp_path / "m"), ratio=0.2, num_samples=14, sequence_length=6)

    def of(work: str) -> FoldContext:
        (tmp_path / work).mkdir()
        return FoldContext(config, checkpoint, running_shape(checkpoint), tmp_path / work, torch.device("cpu"))

    return of


def every_second(first: int) -> Callable[[Sequence[int]], Sequence[int]]:
    return lambda batches: batches[first::2]


def test_processes_share_the_batches(context: Callable[[str], FoldContext]) -> None:
    alone, shared = context("alone"), context("shared")
    expected = token_source(alone, lambda stage: None)
    for first, names in ((1, ["00001.npy"]), (0, ["00000.npy", "00001.npy", "00002.npy"])):
        sample_batches(shared, lambda stage: None, every_second(first))
        assert sorted(path.name for path in (shared.work / BATCH_FOLDER).iterdir()) == names
    found = token_source(shared, pytest.fail)
    assert torch.equal(found.tokens, expected.tokens)
    assert found.tokens.shape == (14, 6)
    assert found.facts == expected.facts
    assert [path.name for path in shared.work.rglob("*") if path.is_file()] == [TOKENS_FILE]


def test_more_processes_than_batches(context: Callable[[str], FoldContext]) -> None:
    idle = context("idle")
    sample_batches(idle, pytest.fail, lambda batches: batches[5:])
    assert not list(idle.work.iterdir())


def test_progress_counts_this_process(context: Callable[[str], FoldContext], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_SECONDS_BETWEEN_NEWS", 0.0)
    work, said = context("work"), list[str]()
    sample_batches(work, said.append, every_second(1))
    assert said[0] == "sampling tokens: 0 of 24"
    assert said[-1] == "sampling tokens: 22 of 24"
    said.clear()
    sample_batches(work, said.append)
    assert said[0] == "sampling tokens: 24 of 84"
