"""Small files of an output are in words that older transformers reads too, and mean the same to the newest."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stock_models import tiny_config
from support import edit_json, fold, tiny_model
from transformers import AutoTokenizer

from llmfold.demo import demo_folder
from llmfold.pipeline.portable import make_tokenizer_portable, older_rope, portable_settings, source_notes

CONFIG = "tokenizer_config.json"
EXTRA = ["<s>", "</s>", "<|new|>"]
TEXTS = ["", "word", " leads", "a<|new|> b", "<s> Ünïcödé\n"]


def with_tokenizer(folder: Path, **settings: Any) -> Path:
    """The tokenizer of the demo, its config changed, in ``folder``."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", CONFIG, "config.json"):
        if not (folder / name).exists():
            shutil.copyfile(demo_folder() / name, folder / name)
    edit_json(folder / CONFIG, **settings)
    return folder


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return found


@pytest.mark.parametrize(
    "settings", [{"tokenizer_class": "LlamaTokenizer"}, {"extra_special_tokens": {"image_token": "<i>"}}, {}]
)
def test_what_older_releases_read_is_left_alone(settings: dict[str, Any]) -> None:
    assert portable_settings(settings) == settings


def test_a_fold_writes_a_tokenizer_that_older_releases_read(tmp_path: Path) -> None:
    source = with_tokenizer(tiny_model(tmp_path / "m", vocab_size=4200), extra_special_tokens=EXTRA)
    report = fold(source, mlp_ratio=0.25, output=tmp_path / "out")
    written = read(report.output)
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in written
    assert written["additional_special_tokens"] == EXTRA
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (report.output, source))
    assert [ours(text).input_ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]
    assert ours.extra_special_tokens == theirs.extra_special_tokens
    assert any("tokenizer_config.json of the source" in note for note in report.notes)


def test_bytes_stay_where_every_release_reads_the_source(tmp_path: Path) -> None:
    source = with_tokenizer(tiny_model(tmp_path / "m", vocab_size=4200), tokenizer_class="PreTrainedTokenizerFast")
    report = fold(source, mlp_ratio=0.25, output=tmp_path / "out")
    assert (report.output / CONFIG).read_bytes() == (source / CONFIG).read_bytes()
    assert not any("tokenizer_config.json" in note for note in report.notes)


def test_words_that_would_change_the_tokenizer_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_tokenizer(tmp_path / "t")
    before = (folder / CONFIG).read_bytes()
    monkeypatch.setattr("llmfold.pipeline.portable.portable_settings", lambda words: {**words, "bos_token": "</s>"})
    (note,) = make_tokenizer_portable(folder)
    assert "would not be the same" in note
    assert (folder / CONFIG).read_bytes() == before


def test_a_folder_without_a_tokenizer_has_nothing_to_say(tmp_path: Path) -> None:
    assert make_tokenizer_portable(tmp_path) == []
    (tmp_path / CONFIG).write_text("{")
    assert make_tokenizer_portable(tmp_path) == []


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gemma2", "glm", "gemma3_text"])
def test_rotary_parameters_are_told_to_older_releases(family: str) -> None:
    raw = tiny_config(family).to_dict()
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"):
        raw.pop(key, None)
    fields = older_rope(raw)
    parameters = raw["rope_parameters"]
    full = parameters.get("full_attention", parameters)
    assert fields["rope_theta"] == full["rope_theta"]
    assert fields["rope_scaling"] is None
    assert fields.get("partial_rotary_factor") == full.get("partial_rotary_factor")
    local = parameters.get("sliding_attention", {})
    assert fields.get("rope_local_base_freq") == local.get("rope_theta")
    assert older_rope({**raw, **fields}) == {}


def test_scaling_keeps_all_but_theta() -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    raw = {**tiny_config("mixtral").to_dict(), "rope_parameters": scaled}
    assert older_rope(raw) == {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, True),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 5e5}, False),
        ({"rope_theta": 5e5}, False),
    ],
)
def test_a_source_whose_rotary_parameters_older_releases_miss_is_told(config: dict[str, Any], told: bool) -> None:
    assert bool(source_notes(config)) == told


def test_words_that_the_newest_refuses_beside_its_own_are_left_out() -> None:
    layers = {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    raw = {"model_type": "gemma4_text", "rope_parameters": layers}
    assert older_rope(raw) == {}
