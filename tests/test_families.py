"""The table of all types: a type that folds has no reason not to, and one that does not says why."""

import json
import sys
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "eval" / "families"))

import run


@pytest.mark.parametrize("model_type", ["phi3", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_a_type_folds_in_all_ways(model_type: str, tmp_path: Path) -> None:
    row = run.try_type(model_type, tmp_path)
    assert (row.reason, row.wrong) == ("", False)
    assert row.folded.keys() == {"paper", "self"}
    assert all(ratio > 0.1 for ratio in row.folded.values())


def test_a_type_that_does_not_fold_says_why(tmp_path: Path) -> None:
    row = run.try_type("mamba", tmp_path)
    assert row.folded == {}
    assert not row.wrong
    assert "nothing to fold in MambaForCausalLM" in row.reason


def test_the_page_tells_faults_from_reasons(tmp_path: Path) -> None:
    rows = [
        run.Row("gemma", "mlp", {"paper": 0.25}),
        run.Row("mamba", reason="no MLP"),
        run.Row("opt", "fc1", {}, "ValueError", True),
    ]
    text = run.page(rows, "make families")
    assert "**1 of 3 decoders fold**" in text
    assert "| gemma | mlp | 25.0% |  |" in text
    assert "| mamba | no MLP |" in text
    assert "| opt | **fault**: ValueError |" in text


def test_a_planted_copy_is_a_copy(tmp_path: Path) -> None:
    run.tiny_checkpoint("gemma", tmp_path / "m", 0)
    before = run.load_file(tmp_path / "m" / "model.safetensors")
    run.plant(tmp_path / "m")
    after = run.load_file(tmp_path / "m" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    third = len(before[name]) // 3
    assert (after[name][:third] == before[name][:third]).all()
    assert (after[name][third : 2 * third] == before[name][:third]).all()


def test_rows_of_an_earlier_run_are_used_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(vars(run.Row("gemma", "mlp", {"paper": 0.25}))) + "\n")
    assert run.known_rows(path)["gemma"].folded == {"paper": 0.25}
    assert run.known_rows(tmp_path / "none") == {}
