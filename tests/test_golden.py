"""eval/golden_compare.py: what differs between two records is found, and judged by the tables."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import ROOT

sys.path.insert(0, str(ROOT / "eval"))
from golden_compare import (  # type: ignore[import-not-found]
    Allowed,
    Comparison,
    Difference,
    Fields,
    Rules,
    Words,
)

RULES = Rules(
    fields=[Fields("*/report.json", ("seconds",), "times")],
    words=[Words("steps/*", r"\d+ s\b", "times")],
    allowed=[Allowed("sweep/*", "work/out/config.json#rope_*", "is written once")],
)
CONFIG = {"hidden_size": 64, "rope_theta": 10000.0, "layers": [{"mlp": 12}, {"mlp": 12}]}


def weights(**changes: Any) -> dict[str, Any]:
    return {"embed": np.arange(6, dtype=np.float32).reshape(2, 3), "norm": np.ones(3, np.float32), **changes}


def record(folder: Path) -> Path:
    """What a run leaves."""
    for name in ("work/out", "steps/1"):
        (folder / name).mkdir(parents=True)
    save_file(weights(), folder / "work/out/model.safetensors")
    (folder / "work/out/config.json").write_text(json.dumps(CONFIG))
    (folder / "work/out/report.json").write_text(json.dumps({"seconds": {"fold": 1.5}, "error": 0.25}))
    (folder / "steps/1/exit-code").write_text("1\n")
    (folder / "steps/1/stderr").write_text(f"llmfold: {folder}/out is  no folder, after 12 s\n")
    return folder


@pytest.fixture
def records(tmp_path: Path) -> tuple[Path, Path]:
    """Two that are equal but for what is not compared."""
    base, tree = record(tmp_path / "one"), record(tmp_path / "other")
    (tree / "work/out/report.json").write_text(json.dumps({"seconds": {"fold": 2.5, "rest": 1}, "error": 0.25}))
    (tree / "steps/1/stderr").write_text(f"llmfold: {tree}/out is no folder, after 9 s\n")
    return base, tree


def differences(records: tuple[Path, Path], case: str = "fold/paper") -> list[Difference]:
    base, tree = records
    found: list[Difference] = Comparison(RULES, ({str(base): "CASE"}, {str(tree): "CASE"})).compare(case, base, tree)
    return found


def the_only(records: tuple[Path, Path]) -> tuple[str, str]:
    (found,) = differences(records)
    return found.place, found.how


def test_times_and_places_are_not_compared(records: tuple[Path, Path]) -> None:
    assert differences(records) == []


def test_a_changed_tensor(records: tuple[Path, Path]) -> None:
    changed = np.ones(3, np.float32)
    changed[1] += 2**-20
    save_file(weights(norm=changed), records[1] / "work/out/model.safetensors")
    place, how = the_only(records)
    assert place == "work/out/model.safetensors#norm"
    assert how == "1 of 3 values differ, by up to 9.5e-07 of the largest"


@pytest.mark.parametrize(
    ("changed", "how"),
    [
        (np.ones(4, np.float32), "F32 [3] → F32 [4]"),
        (np.ones(3, np.float16), "F32 [3] → F16 [3]"),
    ],
)
def test_a_tensor_of_another_kind(records: tuple[Path, Path], changed: Any, how: str) -> None:
    save_file(weights(norm=changed), records[1] / "work/out/model.safetensors")
    assert the_only(records) == ("work/out/model.safetensors#norm", how)


def test_a_tensor_too_many_and_other_metadata(records: tuple[Path, Path]) -> None:
    save_file(weights(more=np.ones(1)), records[1] / "work/out/model.safetensors")
    assert the_only(records) == ("work/out/model.safetensors#more", "not at the base")
    save_file(weights(), records[1] / "work/out/model.safetensors", metadata={"format": "pt"})
    assert "metadata" in the_only(records)[1]


@pytest.mark.parametrize(
    ("config", "place", "how"),
    [
        ({**CONFIG, "hidden_size": 72}, "#hidden_size", "64 → 72"),
        ({**CONFIG, "hidden_size": 64.0}, "#hidden_size", "64 → 64.0"),
        ({**CONFIG, "new": None}, "#new", "absent → None"),
        ({**CONFIG, "layers": [{"mlp": 12}, {"mlp": 11}]}, "#layers.1.mlp", "12 → 11"),
        (dict(reversed(CONFIG.items())), "", "the order of its fields differs"),
    ],
)
def test_a_changed_config(records: tuple[Path, Path], config: dict[str, Any], place: str, how: str) -> None:
    (records[1] / "work/out/config.json").write_text(json.dumps(config))
    assert the_only(records) == (f"work/out/config.json{place}", how)


def test_a_config_that_is_written_in_another_way(records: tuple[Path, Path]) -> None:
    (records[1] / "work/out/config.json").write_text(json.dumps(CONFIG, indent=1))
    assert the_only(records)[1] == "the same values, written in another way"


def test_a_changed_exit_code_and_sentence(records: tuple[Path, Path]) -> None:
    (records[1] / "steps/1/exit-code").write_text("2\n")
    (records[1] / "steps/1/stderr").write_text("llmfold: no such folder\n")
    code, sentence = differences(records)
    assert (code.place, code.how.split()) == ("steps/1/exit-code", ["-1", "+2"])
    assert (sentence.place, sentence.how.split("\n")[1].strip()) == (
        "steps/1/stderr",
        "-llmfold: CASE/out is no folder, after …",
    )


def test_long_lines_are_quoted_where_they_differ(records: tuple[Path, Path]) -> None:
    for folder, word in zip(records, ("one", "other"), strict=True):
        (folder / "work/out/report.html").write_text(f"first\n{'x' * 900}{word}{'y' * 900}\nlast\n")
    before, after = the_only(records)[1].split()
    assert before.startswith("-…x")
    assert after.startswith("+…x")
    assert "oney" in before
    assert "othery" in after
    assert len(before) < 250


def test_a_file_or_folder_that_only_one_has(records: tuple[Path, Path]) -> None:
    (records[0] / "work/out/README.md").touch()
    (records[1] / "work/.partial").mkdir()
    assert [(found.place, found.how) for found in differences(records)] == [
        ("work/.partial/", "not at the base"),
        ("work/out/README.md", "only at the base"),
    ]


def test_what_is_allowed_is_so_in_its_cases_and_places_only(records: tuple[Path, Path]) -> None:
    (records[1] / "work/out/config.json").write_text(json.dumps({**CONFIG, "rope_theta": 1.0, "hidden_size": 72}))
    refused, taken = RULES.sort(differences(records, "sweep/paper"))
    assert [each.place for each in refused] == ["work/out/config.json#hidden_size"]
    assert [each.place for each in taken[RULES.allowed[0]]] == ["work/out/config.json#rope_theta"]
    refused, taken = RULES.sort(differences(records, "fold/paper"))
    assert (len(refused), taken) == (2, {RULES.allowed[0]: []})
