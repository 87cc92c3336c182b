"""A tokenizer that is a file of sentencepiece alone: read as stock transformers reads it, or the package is named."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import fold, tiny_model
from transformers import AutoTokenizer

from llmfold.data.tokenizer import load_tokenizer
from llmfold.data.tokens import token_ids
from messy.draft import POINTER

sentencepiece = pytest.importorskip("sentencepiece", reason="the package that trains and reads such tokenizers")

Run = Callable[..., tuple[int, str, str]]
TEXTS = ("it was dark", " leads\n\tand ends ", "</s>after", "<s> x\n</s> y", "ü 🙂", "", "   three")
SETTINGS: dict[str, dict[str, Any] | None] = {
    "no settings": None,
    "LlamaTokenizer": {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"},
    "legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_eos_token": True},
}
TO_MISTRAL: dict[str, Any] = {"attention_ratio": 0.25, "mlp_ratio": 0.25}
"""Three heads of four, which no Llama of hidden size 32 has."""


def trained(kind: str) -> bytes:
    """A tokenizer.model of 60 pieces or fewer."""
    words = "it was a dark and stormy night the rain fell in torrents quick brown foxes jump over lazy dogs"
    lines: Iterator[str] = iter([words] * 20)
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=file, vocab_size=48, hard_vocab_limit=False, model_type=kind,
        minloglevel=2,
    )  # fmt: skip
    return file.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the algorithm of its tokenizer, a tiny Llama that no test may change."""
    found = {}
    for kind in ("bpe", "unigram"):
        found[kind] = tiny_model(tmp_path_factory.mktemp(kind) / "m", num_key_value_heads=4)
        (found[kind] / "tokenizer.model").write_bytes(trained(kind))
    return found


@pytest.fixture(params=("bpe", "unigram"))
def source(request: pytest.FixtureRequest, models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models[request.param], tmp_path / "model"))


def as_read(tokenizer: Any) -> list[Any]:
    ids = [tokenizer(text).input_ids for text in TEXTS]
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    return [ids, [tokenizer.decode(row) for row in ids], tokenizer.special_tokens_map, len(tokenizer), *sides]


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("options", [{"ratio": 0.2}, TO_MISTRAL], ids=["same family", "as Mistral"])
def test_text_is_read_as_stock_reads_it(source: Path, tmp_path: Path, case: str, options: dict[str, Any]) -> None:
    pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model by it")
    if SETTINGS[case] is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(SETTINGS[case]))
    stock = as_read(AutoTokenizer.from_pretrained(source))
    assert as_read(load_tokenizer(source)) == stock
    assert token_ids(source, TEXTS[0], 64).tolist() == stock[0][0]
    report = fold(source, output=tmp_path / "out", **options)
    assert report.verification["tokenizer_texts"] >= 24
    assert as_read(AutoTokenizer.from_pretrained(tmp_path / "out")) == stock
    copied = (tmp_path / "out" / "tokenizer.model").read_bytes()
    assert copied == (source / "tokenizer.model").read_bytes()


MISSING = """
import sys
for name in {names}:
    sys.modules[name] = None  # as if it were not installed
from llmfold.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["google.protobuf"], "needs protobuf: pip install protobuf"),
        (["sentencepiece", "google.protobuf"], "needs sentencepiece and protobuf: pip install sentencepiece protobuf"),
    ],
)
def test_packages_that_are_missing_are_named(
    models: dict[str, Path], prose: Path, names: list[str], words: str
) -> None:
    code, source = MISSING.format(names=names), models["bpe"]
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", "--model", source, "--text", prose, "--sequence-length", "50"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert words in done.stderr


def test_a_missing_package_is_named_where_text_is_read_and_only_there(
    llmfold: Run, source: Path, space: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
    arguments = ("--model", source, "--ratio", 0.2, "--output", space / "out", "--method", "calibrated")
    sizes = ("--num-samples", 4, "--sequence-length", 16)
    for run in (
        llmfold("plan", *arguments, "--data", prose, *sizes),
        llmfold("fold", *arguments, "--data", prose, *sizes),
        llmfold("eval", "--model", source, "--text", prose, "--sequence-length", 50),
    ):
        assert (run[0], run[2].count("\n")) == (1, 1), run
        assert "tokenizer.model needs sentencepiece" in run[2]
    assert os.listdir(space) == []
    fold(source, output=space / "out", ratio=0.2)
    assert (space / "out" / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()


UNREADABLE = {
    b"no sentencepiece": "tokenizer.model is no file of sentencepiece that can be read: download it again",
    b"": "tokenizer.model is no file of sentencepiece that can be read: download it again",
    b"IQ== 0\nIg== 1\n": "tokenizer.model needs tiktoken: pip install tiktoken",
    POINTER: "tokenizer.model is a git-lfs pointer",
}


@pytest.mark.parametrize("content", UNREADABLE)
def test_what_is_no_file_of_sentencepiece_is_told_as_what_it_is(
    llmfold: Run, source: Path, prose: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model by it")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    (source / "tokenizer.model").write_bytes(content)
    code, _, err = llmfold("eval", "--model", source, "--text", prose, "--sequence-length", 50)
    assert (code, err.count("\n")) == (1, 1), err
    assert UNREADABLE[content] in err
    assert err.count("pip install") == UNREADABLE[content].count("pip install")


def test_ids_beyond_the_rows_are_refused_where_text_is_read(
    llmfold: Run, models: dict[str, Path], tmp_path: Path, prose: Path
) -> None:
    pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model by it")
    source = tiny_model(tmp_path / "m", vocab_size=16)
    shutil.copy(models["bpe"] / "tokenizer.model", source)
    code, _, err = llmfold("eval", "--model", source, "--text", prose, "--sequence-length", 50)
    assert (code, err.count("\n"), "unexpected" in err) == (1, 1, False), err
    assert "embedding has 16 rows" in err


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model"])
def test_a_vocabulary_under_another_name_is_told_of_likewise(
    llmfold: Run, source: Path, prose: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "tokenizer.model").rename(source / name)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", _refuses)
    code, _, err = llmfold("eval", "--model", source, "--text", prose, "--sequence-length", 50)
    assert (code, err.count("\n")) == (1, 1), err
    assert f"{name} needs sentencepiece" in err
    assert "download it again" not in err


def _refuses(*arguments: object, **options: object) -> None:
    raise ImportError("T5Tokenizer needs what is not there")
