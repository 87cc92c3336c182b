"""Texts in the files that people have: tables, packed files, JSON under the name of prose."""

import gzip
import json
import lzma
import sys
from pathlib import Path

import pytest
from support import tiny_model

from llmfold import FoldConfig, UsageError, plan
from llmfold.data.texts import read_text
from llmfold.experiments.variants import Variant

ROWS = [{"text": "Füße", "id": 1}, {"text": None, "id": 2}, {"text": "b", "id": 3}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path: Path, content: str) -> Path:
    packed = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with packed(path, "wt", encoding="utf-8") as file:
        file.write(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, LINES) for name in ("a.jsonl", "a.JSONL", "a.jsonl.gz", "a.jsonl.xz")),
        ("a.json", json.dumps(ROWS)),
        ("a.csv", "text,id\nFüße,1\n,2\nb,3\n"),
        *((name, "id\ttext\n1\tFüße\n2\t\n3\tb\n") for name in ("a.tsv", "a.tsv.gz")),
        *((name, "Füße\n\nb") for name in ("a.txt", "a.txt.gz", "a.txt.xz", "a.md")),
    ],
)
def test_a_file_is_read_by_what_it_is(tmp_path: Path, name: str, content: str) -> None:
    pytest.importorskip("datasets")
    assert read_text(str(write(tmp_path / name, content))).content == "Füße\n\nb"


def test_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert read_text(str(tmp_path / "a.parquet")).content == "Füße\n\nb"


def test_another_column(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = str(write(tmp_path / "a.jsonl", '{"content": "x", "n": 1}\n'))
    assert read_text(path, "content").content == "x"
    with pytest.raises(UsageError, match=r"a\.jsonl has no column 'text' but 'content', 'n'.*--text-column"):
        read_text(path)
    with pytest.raises(UsageError, match=r"column 'n' of .*holds int, not text"):
        read_text(path, "n")


def test_a_table_of_tabs_has_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = str(write(tmp_path / "a.tsv", 'label\tbody\n1\ta, "b"\n2\tc\n'))
    assert read_text(path, "body").content == 'a, "b"\n\nc'
    with pytest.raises(UsageError, match=r"a\.tsv has no column 'text' but 'label', 'body'.*--text-column"):
        read_text(path)


@pytest.mark.parametrize("first", ['{"text": "a"}', '\ufeff{"text": "a"}', '[{"text": "a"}]'])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "corpus"])
def test_json_under_the_name_of_prose_is_refused(tmp_path: Path, name: str, first: str) -> None:
    with pytest.raises(UsageError, match=r"holds JSON.*\.jsonl"):
        read_text(str(write(tmp_path / name, f"{first}\nmore\n")))


@pytest.mark.parametrize("text", ["{curly} words\n", "[1] A footnote\n", "12\n", '"quoted"\n', ""])
def test_prose_that_begins_like_json_is_prose(tmp_path: Path, text: str) -> None:
    assert read_text(str(write(tmp_path / "a.txt", text))).content == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt.gz", "a.txt.xz"])
def test_what_is_not_what_its_name_says_is_a_sentence(tmp_path: Path, name: str) -> None:
    pytest.importorskip("datasets")
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(UsageError, match=f"text .*{name} cannot be read"):
        read_text(str(tmp_path / name))


def test_a_table_without_datasets_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"a\.jsonl is a table.*llmfold\[eval\]"):
        read_text(str(write(tmp_path / "a.jsonl", LINES)))


def test_a_plan_refuses_what_the_fold_could_not_read(tmp_path: Path) -> None:
    model, text = tiny_model(tmp_path / "m"), write(tmp_path / "a.txt", LINES)
    with pytest.raises(UsageError, match="holds JSON"):
        plan(str(model), method="calibrated", ratio=0.2, data=str(text))


def test_the_column_is_an_option_of_outside_text() -> None:
    with pytest.raises(UsageError, match="--text-column is used on outside text"):
        FoldConfig("m", ratio=0.2, text_column="content")
    config = FoldConfig("m", ratio=0.2, method="calibrated", data="a.jsonl", text_column="content")
    assert config.work()["text_column"] == "content"
    assert "text_column" not in FoldConfig("m", ratio=0.2).work()


def test_variants_take_the_column_where_they_read_text() -> None:
    assert Variant("calibrated").fold_options("a.jsonl", "content")["text_column"] == "content"
    assert Variant("calibrated", {"text_column": "x"}).fold_options("a.jsonl", "content")["text_column"] == "x"
    assert "text_column" not in Variant("self").fold_options("a.jsonl", "content")
    assert "text_column" not in Variant("flap", {"data": "self"}).fold_options("a.jsonl", "content")
