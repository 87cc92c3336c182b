"""Tiny models that can read: a tokenizer of single letters with BOS."""

from multiprocessing import get_context
from pathlib import Path

import pytest
from support import tiny_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmfold.evaluation import speed

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"


def teach(folder: Path) -> Path:
    """Give a model of 64 tokens or more a tokenizer."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: i for i, letter in enumerate(LETTERS, 3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have models timed in forks of this process, which need not import anything first."""
    monkeypatch.setattr(speed, "get_context", lambda _: get_context("fork"))


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer, that no test may change."""
    return teach(tiny_model(tmp_path_factory.mktemp("reader") / "tiny"))


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 600 letters: 601 tokens with BOS."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text("it was a dark and stormy night.\n" * 18 + "the rain fell in torrents")
    assert len(path.read_text()) == 601
    return path
