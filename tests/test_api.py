import json
from pathlib import Path
from typing import Any

import pytest
from support import fold, tensor_hashes, tiny_model

import llmfold
from llmfold import FoldConfig, FoldPlan, LayerOverride, UsageError
from llmfold.pipeline import progress


def test_folds_a_path_or_a_string_or_a_config(tmp_path: Path, session_model: Path) -> None:
    options: dict[str, Any] = {"ratio": 0.2, "method": "paper"}
    llmfold.fold(session_model, output=tmp_path / "a", **options)
    llmfold.fold(str(session_model), output=str(tmp_path / "b"), **options)
    report = llmfold.fold(FoldConfig(str(session_model), output=str(tmp_path / "c"), **options))
    assert report.output == tmp_path / "c"
    assert tensor_hashes(tmp_path / "a") == tensor_hashes(tmp_path / "b") == tensor_hashes(tmp_path / "c")


def test_the_report_is_what_was_saved(tmp_path: Path, session_model: Path) -> None:
    report = fold(session_model, ratio=0.2, output=tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert report.ratio == 1 - report.parameters_after / report.parameters_before


@pytest.mark.parametrize(
    "layers", [{"1": {"mlp": 0.5}}, {1: {"mlp": 0.5}}, {"1-1": {"mlp": 0.5}}, {1: LayerOverride(mlp=0.5)}]
)
def test_layers_may_be_given_as_in_a_recipe(session_model: Path, layers: Any) -> None:
    plan = llmfold.plan(session_model, layers=layers)
    assert [layer.intermediate for layer in plan.after.layers] == [48, 24]


def test_planning_writes_nothing(session_model: Path, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(space)
    plan = llmfold.plan(session_model, ratio=0.2)
    assert plan.parameters_after < plan.parameters_before
    assert list(space.iterdir()) == []


def test_an_unknown_option_is_named(session_model: Path) -> None:
    with pytest.raises(UsageError, match="'ratoi'"):
        llmfold.fold(session_model, ratoi=0.2)


def test_a_config_and_options_do_not_mix(session_model: Path) -> None:
    with pytest.raises(TypeError):
        llmfold.fold(FoldConfig(str(session_model), ratio=0.2), ratio=0.3)


def test_a_layer_that_does_not_exist_is_named(tmp_path: Path, session_model: Path) -> None:
    with pytest.raises(UsageError, match="layer 2 of the recipe does not exist; the model has 2 layers"):
        llmfold.fold(session_model, layers={"1-2": {"mlp": 0.5}}, output=tmp_path / "out")


class Recorder:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def opened(self, layers: int) -> None:
        self.heard.append(f"opened {layers}")

    def start(self, plan: FoldPlan, done: int) -> None:
        self.heard.append(f"start {done}/{len(plan.before.layers)}")

    def stage(self, name: str) -> None:
        self.heard.append(name)

    def advance(self) -> None:
        self.heard.append("advance")


def test_a_listener_hears_of_every_layer_in_order(tmp_path: Path) -> None:
    from llmfold.pipeline.engine import fold_together

    recorder = Recorder()
    source = tiny_model(tmp_path / "m", num_hidden_layers=3)
    fold_together([FoldConfig(str(source), ratio=0.2, method="paper", output=str(tmp_path / "out"))], recorder)
    assert recorder.heard.index("opened 3") < recorder.heard.index("start 0/3")
    assert recorder.heard.count("advance") == 3
    assert recorder.heard[-2:] == ["reload check", "publish"]
    layers = [stage for stage in recorder.heard if stage.startswith("layer ")]
    assert layers == sorted(layers, key=lambda s: int(s.split()[1].rstrip(":")))


def test_the_bar_works_on_a_terminal_only(
    tmp_path: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not progress.on_terminal()
    fold(session_model, ratio=0.2, output=tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    fold(session_model, ratio=0.2, output=tmp_path / "b")
    assert capfd.readouterr().out == ""
    fold(session_model, ratio=0.2, output=tmp_path / "c", quiet=True)
    assert capfd.readouterr() == ("", "")
