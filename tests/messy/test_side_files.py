"""What lies beside the weights of real checkpoints: paths of other machines, tokenizers of other kinds, code."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import edit_json, fold, tiny_model

from llmfold import CheckpointError, plan
from llmfold.checkpoint.side_files import copy_side_files, without_paths

HOME = "/home/somebody/secret"


def config(folder: Path, name: str, **fields: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(fields))


def copied(folder: Path, target: Path, **options: bool) -> tuple[set[str], list[str]]:
    target.mkdir(exist_ok=True)
    notes = copy_side_files(folder, target, **options)
    return {path.name for path in target.iterdir()}, notes


def test_no_path_of_the_machine_that_wrote_a_config_is_published(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    edit_json(model / "config.json", _name_or_path=HOME, note={"_name_or_path": HOME, "kept": 1})
    edit_json(model / "generation_config.json", _name_or_path=HOME, top_k=7)
    config(model, "tokenizer_config.json", name_or_path=HOME, tokenizer_file=f"{HOME}/t.json", model_max_length=10**30)
    config(model, "processor_config.json", image_processor={"_name_or_path": HOME, "size": 4})
    fold(model, mlp_ratio=0.25, output=str(tmp_path / "out"))
    for path in (tmp_path / "out").rglob("*.*"):
        assert HOME.encode() not in path.read_bytes(), path.name

    def read(name: str) -> Any:
        return json.loads((tmp_path / "out" / name).read_text())

    assert read("config.json")["note"] == {"kept": 1}
    assert read("generation_config.json")["top_k"] == 7
    assert read("tokenizer_config.json") == {"model_max_length": 10**30}
    assert read("processor_config.json") == {"image_processor": {"size": 4}}


def test_what_has_no_path_keeps_its_bytes(tmp_path: Path) -> None:
    raw = b'{"b":1.0,  "vocab_file": "vocab.txt", "a":"\\ud800"}'
    (tmp_path / "tokenizer_config.json").write_bytes(raw)
    (tmp_path / "generation_config.json").write_bytes(b"not JSON")
    copied(tmp_path, tmp_path / ".out")
    assert (tmp_path / ".out" / "tokenizer_config.json").read_bytes() == raw
    assert (tmp_path / ".out" / "generation_config.json").read_bytes() == b"not JSON"


def test_paths_of_windows_are_paths() -> None:
    assert without_paths([{"special_tokens_map_file": "C:\\me\\x.json", "x": 1}]) == [{"x": 1}]


@pytest.mark.parametrize(
    "name",
    [
        *("tekken.json", "sentencepiece.bpe.model", "tokenizer.model.v3", "spiece.model", "vocab.json", "merges.txt"),
        *("source.spm", "tokenizer.4.0.0.json", "tiktoken.model", "COPYING"),
    ],
)
def test_tokenizers_in_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert copied(tmp_path, tmp_path / ".out") == ({name}, [])


def test_files_that_the_tokenizer_class_names(tmp_path: Path) -> None:
    for name in ("emoji.json", "other.json"):
        (tmp_path / name).write_text("{}")
    config(tmp_path, "tokenizer_config.json", tokenizer_class="GPTNeoXJapaneseTokenizer")
    names, (note,) = copied(tmp_path, tmp_path / ".out")
    assert names == {"emoji.json", "tokenizer_config.json"}
    assert note.endswith(": other.json")


def test_code_of_a_tokenizer_goes_with_its_auto_map_or_neither_does(tmp_path: Path) -> None:
    model = tmp_path / "m"
    config(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]}, x=1)
    (model / "tokenization_x.py").write_text("")
    names, notes = copied(model, tmp_path / "without")
    assert names == {"tokenizer_config.json"}
    assert json.loads((tmp_path / "without" / "tokenizer_config.json").read_text()) == {"x": 1}
    assert "auto_map of tokenizer_config.json" in notes[0]
    assert "--trust-remote-code" in notes[0]
    assert notes[1].endswith(": tokenization_x.py")
    assert copied(model, tmp_path / "with", remote_code=True) == ({"tokenizer_config.json", "tokenization_x.py"}, [])
    assert (tmp_path / "with" / "tokenizer_config.json").read_bytes() == (model / "tokenizer_config.json").read_bytes()


def test_the_run_names_what_it_leaves_behind(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    for index in range(10):
        (model / f"notes-{index}.txt").write_text("x")
    report = fold(model, mlp_ratio=0.25, output=str(tmp_path / "out"))
    (note,) = report.notes
    assert "notes-0.txt" in note
    assert note.endswith("and 2 more")


@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM"])
def test_code_that_computes_the_model_is_refused(tmp_path: Path, key: str) -> None:
    model = tiny_model(tmp_path / "m")
    edit_json(model / "config.json", auto_map={key: "modeling_x.X"})
    for do in (plan, fold):
        with pytest.raises(CheckpointError, match=r"auto_map in config\.json names modeling_x\.X"):
            do(str(model), mlp_ratio=0.25, **({"output": str(tmp_path / "out")} if do is fold else {}))
    assert not (tmp_path / "out").exists()
    edit_json(model / "config.json", auto_map={"AutoModel": "modeling_x.X"})
    plan(str(model), mlp_ratio=0.25)
