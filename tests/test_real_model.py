"""eval/real_model.py: folds of several ratios are made together, and what is there is neither made nor scored again."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "eval"))
import real_model  # type: ignore[import-not-found]

DEMO = ROOT / "llmfold" / "demo" / "wiki-llama"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What runs the script with some folds and texts, and gives its results by ratio, data, or None (dense)."""
    monkeypatch.setattr(real_model, "RESULTS", tmp_path / "results")
    usual = {"name": "m", "device": "cpu", "length": 32, "note": "", "seed": [0], "tasks": [], "data_dir": None}

    def scores(fold: list[str], text: list[str], **others: Any) -> dict[Any, Any]:
        arguments = {**usual, "folder": DEMO, "fold": fold, "text": text, "limit": None, "scratch": tmp_path, **others}
        real_model.run(Namespace(**arguments))
        found = [json.loads(path.read_text()) for path in (tmp_path / "results" / "m").glob("*.json")]
        return {each["case"].get("ratio", each["case"].get("data")): each for each in found}

    return scores


def test_ratios_of_a_spec_are_cases() -> None:
    several = [case.options for case in real_model.cases("self:ratio=0.1|0.3,ratio_of=decoder", 1)]
    assert several == [{"method": "self", "seed": 1, "ratio": r, "ratio_of": "decoder"} for r in (0.1, 0.3)]
    (one,) = real_model.cases("paper:mlp_ratio=0.25,attention_ratio=0", 0)
    assert one.options == {"method": "paper", "seed": 0, "mlp_ratio": 0.25, "attention_ratio": 0}


def test_what_is_there_is_not_made_again_and_what_is_missing_is_added(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text((ROOT / "README.md").read_text())
    first, second = f"{tmp_path / 'text.txt'}:1-3", f"{tmp_path / 'text.txt'}:4-5"
    folds = ["dense", "paper:ratio=0.1|0.3"]
    made = run(folds, [first])
    assert made.keys() == {None, 0.1, 0.3}
    assert made[None]["nll"]["text.txt 1-3"] < made[0.1]["nll"]["text.txt 1-3"] < made[0.3]["nll"]["text.txt 1-3"]
    scored: list[int] = []
    score = real_model.score
    monkeypatch.setattr(real_model, "score", lambda m, windows: scored.append(len(windows.tokens)) or score(m, windows))
    both = run(folds, [second])
    assert scored == [2, 2, 2]
    for ratio, before in made.items():
        assert both[ratio]["nll"].keys() == both[ratio]["protocols"].keys() == {"text.txt 1-3", "text.txt 4-5"}
        assert both[ratio]["nll"]["text.txt 1-3"] == before["nll"]["text.txt 1-3"]
    monkeypatch.setattr(real_model, "fold_configs", lambda *_, **__: pytest.fail("it stands already"))
    assert run(folds, [first, second]) == both
    with pytest.raises(SystemExit, match="windows of 32 tokens, not 16"):
        run(folds, [first], length=16)


def test_a_pruner_on_the_models_own_text_is_no_rival_that_needs_data(run: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text((ROOT / "README.md").read_text())
    drawn = "mlp_ratio=0.3,attention_ratio=0,num_samples=4,sequence_length=16"
    outside = f"wanda-sp:{drawn},data={tmp_path / 'text.txt'}"
    found = run(["dense", f"wanda-sp:{drawn},data=self", outside], [f"{tmp_path / 'text.txt'}:1-3"])
    assert found["self"]["widths"] == [[round(0.7 * 512), 8]] * 6
    real_model.page()
    rows = [line for line in (tmp_path / "m-real.md").read_text().splitlines() if line.startswith("| wanda-sp")]
    assert len(rows) == 2
    assert [row for row in rows if "(1.00)" in row] == [row for row in rows if "data text.txt" in row]
