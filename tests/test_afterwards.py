import json
from pathlib import Path
from typing import Any

import pytest
from reading import teach
from support import edit_tensors, tiny_model

import llmfold as package
from llmfold import FoldConfig, UsageError
from llmfold import afterwards as module
from llmfold.errors import CheckpointError, LlmfoldError
from llmfold.evaluation.fidelity import Fidelity
from llmfold.evaluation.scores import Evaluation

QUICK = {"method": "paper", "mlp_ratio": 0.25, "fidelity_tokens": 256}


def saved(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def test_a_fold_says_how_close_it_is_by_default(session_model: Path, space: Path) -> None:
    report = package.fold(session_model, **QUICK, output=space / "out")
    found = report.quality["fidelity"]
    assert found["kl"] > 0
    assert 0 <= found["top1"] <= 1
    assert found["tokens"] == 256
    assert len(found["layer_errors"]) == 2
    assert saved(report.output)["quality"] == json.loads(json.dumps(report.quality))
    assert FoldConfig(str(session_model), ratio=0.1).fidelity_tokens > 0


def test_the_numbers_are_those_of_eval(session_model: Path, space: Path, llmfold: Any) -> None:
    report = package.fold(session_model, **QUICK, output=space / "out")
    path = space / "scores.json"
    code, _, _ = llmfold(
        "eval", "--model", report.output, "--against", session_model, "--fidelity-tokens", 256, "--output", path
    )
    assert code == 0
    assert json.loads(path.read_text())["fidelity"] == json.loads(json.dumps(report.quality["fidelity"]))


def test_eval_measures_both_models_and_stands_in_the_report(tmp_path: Path, prose: Path, space: Path) -> None:
    model = teach(tiny_model(tmp_path / "tiny"))
    report = package.fold(model, **QUICK, output=space / "out", eval="wikitext2", eval_text=str(prose))
    dense, folded = (report.quality[side]["perplexity"]["value"] for side in ("dense", "model"))
    assert dense != folded
    assert f"{dense:.4f}" in (report.output / "report.html").read_text()


def test_data_that_is_missing_stops_the_fold_before_it_begins(session_model: Path, space: Path, prose: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.txt does not exist"):
        package.fold(session_model, **QUICK, output=space / "out", eval="wikitext2", eval_text="nowhere.txt")
    with pytest.raises(UsageError, match="did you mean boolq"):
        package.fold(session_model, **QUICK, output=space / "out", eval="bolq", eval_data_dir=str(space))
    with pytest.raises(UsageError, match="--eval-limit counts documents of zero-shot tasks, and none is named"):
        package.fold(session_model, **QUICK, output=space / "out", eval="wikitext2", eval_text=str(prose), eval_limit=3)
    with pytest.raises(UsageError, match=r"--eval-data-dir .*nowhere is no folder"):
        package.fold(session_model, **QUICK, output=space / "out", eval="piqa", eval_data_dir=str(space / "nowhere"))
    with pytest.raises(UsageError, match="--eval, which is missing"):
        package.fold(session_model, **QUICK, output=space / "out", eval_limit=3)
    assert list(space.iterdir()) == []


def test_a_model_that_does_not_fit_is_left_out_and_said(
    session_model: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fits", lambda *_: False)
    report = package.fold(session_model, **QUICK, output=space / "out")
    assert report.quality == {}
    assert "does not fit in memory" in saved(report.output)["notes"][0]
    assert "does not fit in memory" in (report.output / "report.html").read_text()


def test_a_model_far_from_the_dense_one_gets_a_warning(tmp_path: Path, space: Path) -> None:
    assert Fidelity(0.1, 0.5, 10, 1).warning is None
    assert "49% of next tokens only" in str(Fidelity(0.1, 0.49, 10, 1).warning)
    model = tiny_model(tmp_path / "tiny", hidden_size=64, intermediate_size=400)
    edit_tensors(model, lambda t: t.update({name: 4 * x for name, x in t.items() if "mlp" in name}))
    report = package.fold(model, **{**QUICK, "mlp_ratio": 0.95}, output=space / "out")
    assert report.quality["fidelity"]["top1"] < 0.5
    assert "next tokens only" in report.warnings[0]
    assert "next tokens only" in (report.output / "report.html").read_text()


def test_a_task_that_cannot_be_scored_fails_when_the_rest_is_measured_and_saved(
    session_model: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = module.evaluate

    def failing(*given: Any, **options: Any) -> Evaluation:
        found = measured(*given, **options)
        found.failures.append("piqa cannot be scored: an answer is too long")
        return found

    monkeypatch.setattr(module, "evaluate", failing)
    with pytest.raises(LlmfoldError, match=r"piqa cannot be scored.*the fold is finished and stands at"):
        package.fold(session_model, **QUICK, output=space / "out")
    assert saved(space / "out")["quality"]["fidelity"]["kl"] > 0


@pytest.mark.parametrize("struck", [KeyboardInterrupt(), CheckpointError("transformers cannot load it")])
def test_a_fold_that_is_finished_is_not_to_be_run_again(
    session_model: Path, space: Path, llmfold: Any, monkeypatch: pytest.MonkeyPatch, struck: BaseException
) -> None:
    def strike(*_: Any, **__: Any) -> None:
        raise struck

    monkeypatch.setattr(module, "evaluate", strike)
    command = ("--model", session_model, "--ratio", 0.2, "--method", "paper", "--quiet", "--output", space / "out")
    code, _, said = llmfold(*command)
    assert code == (130 if isinstance(struck, KeyboardInterrupt) else 1)
    assert f"the fold is finished and stands at {space / 'out'}" in said
    assert str(struck) in said
    assert "same command again" not in said
    assert (space / "out" / "config.json").exists()
