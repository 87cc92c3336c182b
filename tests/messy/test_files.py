"""Tokenizers that are absent or unreadable, pointers of git-lfs, indexes that disagree with their shards."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reading import teach
from support import INDEX, edit_json, logits, tiny_model, weight_files

from llmfold.data import tokenizer
from llmfold.errors import CheckpointError
from llmfold.evaluation import evaluate as module
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.suite import Suite
from llmfold.evaluation.zeroshot import Harness

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
PROBE = torch.tensor([[1, 2, 3, 4]])
UP = "model.layers.1.mlp.up_proj.weight"
Run = Callable[..., tuple[int, str, str]]
Names = dict[str, str]


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _sentencepiece(folder: Path) -> None:
    _without_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (_without_tokenizer, "has no tokenizer: copy tokenizer.json"),
    "empty": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is no tokenizer"),
    "without its packages": (_sentencepiece, "tokenizer.model needs sentencepiece and protobuf: pip install"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_is_missed_only_where_text_is_read(
    llmfold: Run, model: Path, space: Path, prose: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tokenizer, "_is_installed", lambda module: False)
    change, sentence = TOKENIZERS[kind]
    change(teach(model))
    out = space / "out"
    arguments = ("--model", model, "--ratio", 0.2, "--num-samples", 4, "--sequence-length", 16, "--refine", 0)
    calibrated = (*arguments, "--method", "calibrated", "--data", prose, "--output", out)
    measured = ("--model", model, "--ratio", 0.2, "--method", "paper", "--eval", "wikitext2", "--eval-text", prose)
    for run in (
        llmfold(*calibrated),
        llmfold("plan", *calibrated),
        llmfold(*measured, "--output", out),
        llmfold("plan", *measured),
        llmfold("eval", "--model", model, "--text", prose, "--sequence-length", 50),
    ):
        assert (run[0], sentence in run[2], "unexpected" in run[2]) == (1, True, False), run
    assert os.listdir(space) == []
    code, _, err = llmfold(*arguments, "--method", "self", "--output", out, "--fidelity-tokens", 0)
    assert code == 0, err
    (note,) = json.loads((out / "report.json").read_text())["notes"]
    assert "no random words" in note
    assert sentence.split()[-1] in note
    assert str(model) not in note


def test_tasks_miss_a_tokenizer_before_a_model_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "opened", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        module.evaluate(EvaluationSettings(str(model), tasks="piqa"), suite=Suite(None, Harness(("piqa",))))


@pytest.mark.parametrize("name", ["tokenizer.json", "a shard", "config.json"])
def test_pointers_of_git_lfs_are_told_before_any_work(llmfold: Run, tmp_path: Path, space: Path, name: str) -> None:
    folder = teach(tiny_model(tmp_path / "model", shards=3))
    name = weight_files(folder)[1].name if name == "a shard" else name
    (folder / name).write_text(POINTER)
    arguments = ("--model", folder, "--ratio", 0.2, "--method", "paper", "--output", space / "out")
    for run in (llmfold(*arguments), llmfold("plan", *arguments)):
        assert (run[0], f"{name} is a git-lfs pointer" in run[2]) == (1, True), run
    assert os.listdir(space) == []


def _tied_head(names: Names, files: list[str]) -> Names:
    return {**names, "lm_head.weight": files[-1]}


def _unlisted(names: Names, files: list[str]) -> Names:
    return {name: file for name, file in names.items() if name != UP}


def _elsewhere(names: Names, files: list[str]) -> Names:
    return {**names, UP: next(file for file in files if file != names[UP])}


@pytest.mark.parametrize("change", [_tied_head, _unlisted, _elsewhere])
def test_shards_say_what_they_hold_as_to_transformers(
    llmfold: Run, tmp_path: Path, space: Path, change: Callable[[Names, list[str]], Names]
) -> None:
    folder = tiny_model(tmp_path / "model", shards=3, tie_word_embeddings=change is _tied_head)
    before = logits(folder, PROBE)
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map=change(names, [path.name for path in weight_files(folder)]))
    assert torch.equal(logits(folder, PROBE), before)
    out = space / "out"
    code, _, err = llmfold("--model", folder, "--ratio", 0, "--method", "paper", "--output", out)
    assert code == 0, err
    assert torch.equal(logits(out, PROBE), before)
