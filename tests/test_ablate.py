"""eval/ablate.py: cases run, what keeps all neurons loses nothing, and what stands is not run again."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "eval"))
import ablate  # type: ignore[import-not-found]

DEMO = ROOT / "llmfold" / "demo" / "wiki-llama"
KINDS = ("", ",target=0.0", ",target=1.0", ",metric=fisher", ",refine=8", ",refine=8,target=0.5,closed=alone")
CASES = tuple(f"tokens=2048,length=64{more}" for more in KINDS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(3 * (ROOT / "LICENSE").read_text(encoding="utf-8"))  # a text that no edit changes
    return path


def losses(text: Path, results: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Negative log-likelihoods by case, of the demo model with MLPs of ``width``."""
    monkeypatch.setattr(ablate, "RESULTS", results)
    usual = {"folder": DEMO, "name": "m", "device": "cpu", "length": 64, "note": "", "samples": None, "axis": []}
    given = {"calibration": text, "unseen": str(text), "text": [f"{text}:8"], "case": CASES, "share": "1/1"}
    ablate.run(Namespace(**usual, **given, width=width))
    found = (json.loads(path.read_text()) for path in (results / "m").glob("*.json"))
    return {ablate.Case(**each["case"]).name if "case" in each else "dense": each["nll"][text.name] for each in found}


def test_neurons_that_all_stay_change_nothing_and_half_of_them_something(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads((DEMO / "config.json").read_text())["intermediate_size"]
    same, fewer = (losses(text, tmp_path / str(width), width, monkeypatch) for width in (whole, whole // 2))
    dense = same.pop("dense")
    assert len(same) == len(CASES)
    assert list(same.values()) == pytest.approx([dense] * len(CASES), abs=2e-3)
    assert fewer.pop("dense") == dense
    assert all(0.001 < abs(loss - dense) < 1 for loss in fewer.values())  # it is fitted to what it is scored on
    assert len(set(fewer.values())) == len(CASES)


def test_what_stands_is_not_run_again(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = json.loads((DEMO / "config.json").read_text())["intermediate_size"] // 2
    first = losses(text, tmp_path / "r", width, monkeypatch)
    monkeypatch.setattr(ablate, "run_group", lambda *_: pytest.fail("ran again"))
    assert losses(text, tmp_path / "r", width, monkeypatch) == first
