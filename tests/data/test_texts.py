import lzma
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmfold import UsageError
from llmfold.data.texts import read_text
from llmfold.evaluation.perplexity import token_stream


def test_plain_and_compressed_files_are_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Füße\n", encoding="utf-8")
    with lzma.open(tmp_path / "a.txt.xz", "wt", encoding="utf-8") as file:
        file.write("Füße\n")
    plain, packed = read_text(str(tmp_path / "a.txt")), read_text(str(tmp_path / "a.txt.xz"))
    assert (plain.name, plain.content, plain.sha256) == ("a.txt", "Füße\n", packed.sha256)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_text_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.txt"):
        read_text(str(path))


def test_wikitext_is_the_raw_test_split_joined_by_blank_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> dict[str, list[str]]:
        asked.append((arguments, options))
        return {"text": ["", " = A = \n", " b \n"]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    text = read_text("wikitext")
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})]
    assert text.content == "\n\n = A = \n\n\n b \n"
    assert text.name == "wikitext-2-raw-v1 test"


def test_wikitext_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"llmfold\[eval\]"):
        read_text("wikitext")


def test_wikitext_without_a_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UsageError, match=r"cannot be had from the hub \(ConnectionError\)"):
        read_text("wikitext")


def test_wikitext_2_is_341469_llama_2_tokens(data_dir: Path) -> None:
    text = read_text(str(data_dir / "text" / "wikitext-2-raw-v1-test.txt"))
    stream = token_stream(data_dir / "models" / "llama2-tokenizer", text)
    assert len(stream) == 341_469
    assert int(stream[0]) == 1
