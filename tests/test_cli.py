"""The command line as people use it; bad models and outputs are in pipeline/test_bad_input.py."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, environment, file_hashes, tensor_hashes, tiny_model

import llmfold as package
from llmfold import cli
from llmfold.demo import demo_folder
from llmfold.options import options_of, spelled

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def at_work(space: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, since outputs are written there by default."""
    monkeypatch.chdir(space)
    return space


def test_python_dash_m_folds_the_demo_at_80_columns(space: Path) -> None:
    if not (demo_folder() / "model.safetensors").exists():
        pytest.skip("the demo checkpoint is not in this checkout")
    command = [sys.executable, "-m", "llmfold", "--model", "demo", "--ratio", "0.2", "--method", "paper"]
    done = subprocess.run(
        command, cwd=space, env=environment(COLUMNS="80"), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr  # a slow machine sees lines of progress there
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert "20.0% less" in done.stdout
    assert os.listdir(space) == ["demo-folded-0.2"]


def test_plan_prints_the_plan_and_writes_nothing(llmfold: Cli, session_model: Path, at_work: Path) -> None:
    for arguments in (("plan",), ("--dry-run",), ("fold", "--dry-run")):
        code, stdout, stderr = llmfold(*arguments, "--model", session_model, "--mlp-ratio", 0.25, "--method", "paper")
        assert (code, stderr) == (0, "")
        assert "48 → 36" in stdout
        assert os.listdir(at_work) == []


def test_plan_and_fold_refuse_what_the_machine_cannot_hold(
    llmfold: Cli, session_model: Path, at_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("llmfold.pipeline.estimate"), "available_memory", lambda: 1_000_000)
    for command in ("plan", "fold"):
        code, stdout, stderr = llmfold(command, "--model", session_model, "--mlp-ratio", 0.25, "--method", "paper")
        assert code == 1
        assert "48 → 36" in stdout
        assert stderr.startswith("llmfold: this fold needs about")
        assert "1.0 MB left" in stderr
        assert os.listdir(at_work) == []


def test_fold_is_the_default_command_and_names_its_output(
    llmfold: Cli, session_model: Path, at_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfold.pipeline.progress.INTERVAL", float("inf"))
    code, stdout, stderr = llmfold("--model", session_model, "--ratio", 0.2, "--method", "paper")
    assert (code, stderr) == (0, "")
    assert os.listdir(at_work) == [f"{session_model.name}-folded-0.2"]
    assert "reload check" in stdout
    assert "passed" in stdout


def test_without_a_terminal_a_line_tells_now_and_then_where_the_work_is(
    llmfold: Cli, session_model: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfold.pipeline.progress.INTERVAL", 0.0)
    arguments = ("--model", session_model, "--ratio", 0.2, "--method", "paper", "--output", space / "out")
    code, _, stderr = llmfold(*arguments)
    assert code == 0
    assert "fold, layer 2 of 2" in stderr
    assert "reload check\n" in stderr
    assert llmfold(*arguments, "--overwrite", "--quiet") == (0, "", "")


def test_quiet_prints_nothing(llmfold: Cli, session_model: Path, space: Path) -> None:
    run = llmfold("--model", session_model, "--ratio", 0.2, "--method", "paper", "--quiet", "--output", space / "out")
    assert run == (0, "", "")


def test_a_model_with_its_own_code_is_folded_quietly_too(llmfold: Cli, session_model: Path, space: Path) -> None:
    recipe = space / "recipe.yaml"
    recipe.write_text("method: paper\nlayers: {0: {mlp: 0.5, attention: 0.5}}")
    assert llmfold("--model", session_model, "--recipe", recipe, "--quiet", "--output", space / "out") == (0, "", "")


def test_a_recipe_equals_its_flags(llmfold: Cli, session_model: Path, space: Path) -> None:
    recipe = space / "recipe.yaml"
    recipe.write_text(
        f"model: {session_model}\nmlp-ratio: 0.25\nattention_ratio: 0.5\ncluster: hartigan\nalign: gauge\n"
        "repair: variance\nseed: 7\ndtype: bfloat16\nmax-shard-size: 20KB\nmethod: paper\n"
    )
    flags = (
        *("--model", session_model, "--mlp-ratio", 0.25, "--attention-ratio", 0.5, "--cluster", "hartigan"),
        *("--align", "gauge", "--repair", "variance", "--seed", 7, "--dtype", "bfloat16"),
        *("--max-shard-size", "20KB", "--method", "paper"),
    )
    assert llmfold("--recipe", recipe, "--output", space / "a", "--quiet") == (0, "", "")
    assert llmfold(*flags, "--output", space / "b", "--quiet") == (0, "", "")
    assert file_hashes(space / "a") == file_hashes(space / "b")


def test_flags_override_the_recipe(llmfold: Cli, session_model: Path, space: Path) -> None:
    recipe = space / "recipe.yaml"
    recipe.write_text("mlp_ratio: 0.5\nseed: 1\nmethod: paper\n")
    common = ("--model", session_model, "--quiet", "--output", space / "out")
    assert llmfold("--recipe", recipe, "--mlp-ratio", 0.25, *common) == (0, "", "")
    config = json.loads((space / "out" / "report.json").read_text())["config"]
    assert (config["mlp_ratio"], config["seed"]) == (0.25, 1)


def test_layers_of_a_recipe_reach_the_plan(llmfold: Cli, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("layers: {0-1: {mlp: 0.5}, 3: {attention: 0.5}}")
    code, stdout, _ = llmfold("plan", "--model", source, "--recipe", recipe)
    assert code == 0
    lines = [line.split() for line in stdout.splitlines()[-3:]]
    assert lines == [
        ["0-1", "48", "→", "24", "4", "2"],
        ["2", "48", "4", "2"],
        ["3", "48", "4", "→", "2", "2", "→", "1"],
    ]


def test_the_recipe_of_the_reference_plans_llama_7b(
    llmfold: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmfold import checkpoint
    from llmfold.checkpoint import Source
    from llmfold.pipeline import opening

    config = {"model_type": "llama", "torch_dtype": "float16", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))  # LlamaConfig's defaults are LLaMA-7B's sizes
    for module in (checkpoint, opening):
        monkeypatch.setattr(module, "resolve", lambda *_, **__: Source(tmp_path, "huggyllama/llama-7b", "0" * 40))
    recipe = ROOT / "llmfold" / "recipes" / "llama-7b-paper.yaml"
    code, stdout, stderr = llmfold("plan", "--model", "huggyllama/llama-7b", "--recipe", recipe)
    assert (code, stderr) == (0, "")
    assert "11008 → 5504" in stdout
    assert "11008 → 6656" in stdout


USAGE: dict[str, tuple[tuple[object, ...], str]] = {
    "no arguments": ((), "--model is missing"),
    "no model": (("--ratio", 0.2), "--model is missing"),
    "no ratio": (("--model", "demo"), "nothing says how much to remove"),
    "unknown option": (("--model", "demo", "--ratoi", 0.2), "--ratoi"),
    "abbreviated option": (("--mod", "demo", "--ratio", 0.2), "--mod"),
    "unknown command": (("shrink", "--model", "demo"), "'shrink'"),
    "unknown choice": (("--model", "demo", "--ratio", 0.2, "--cluster", "dbscan"), "'dbscan'"),
    "missing value": (("--model",), "expected one argument"),
    "bad seed": (("--model", "demo", "--ratio", 0.2, "--seed", "-1"), "--seed"),
    "bad shard size": (("--model", "demo", "--ratio", 0.2, "--max-shard-size", "tiny"), "'tiny' is not a size"),
    "bad multiple": (("--model", "demo", "--ratio", 0.2, "--multiple-of", 0), "--multiple-of"),
    "absent recipe": (("--model", "demo", "--recipe", "absent.yaml"), "recipe absent.yaml cannot be read"),
    "too many ratios": (
        ("--model", "MODEL", "--ratio", 0.2, "--mlp-ratio", 0.2, "--attention-ratio", 0.2),
        "give at most two",
    ),
    "revision of a folder": (("--model", "MODEL", "--ratio", 0.2, "--revision", "main"), "--revision main"),
    "unknown device": (("--model", "MODEL", "--ratio", 0.2, "--device", "abacus"), "--device abacus"),
    "absent device": (("--model", "MODEL", "--ratio", 0.2, "--device", "cuda:99"), "--device cuda:99"),
    "a device without memory": (("--model", "MODEL", "--ratio", 0.2, "--device", "meta"), "--device meta"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_exits_with_two_and_a_sentence(llmfold: Cli, session_model: Path, at_work: Path, case: str) -> None:
    arguments, words = USAGE[case]
    code, _, stderr = llmfold(*(session_model if argument == "MODEL" else argument for argument in arguments))
    assert code == 2, stderr
    assert stderr.startswith("llmfold: ")
    assert stderr.count("\n") == 1
    assert words in stderr
    assert os.listdir(at_work) == []


RECIPES = {
    "unknown key": "ratoi: 0.2",
    "overlapping ranges": "layers: {0-1: {mlp: 0.5}, 1: {mlp: 0.4}}",
    "absent layers": "layers: {1-2: {mlp: 0.5}}",
    "bad YAML": "layers: {",
    "repeated key": "ratio: 0.1\nratio: 0.2",
    "ratio out of range": "ratio: 20",
    "wrong type": "ratio: 0.2\ntrust_remote_code: 'no'",
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_bad_recipe_exits_with_two_and_a_sentence(llmfold: Cli, session_model: Path, space: Path, case: str) -> None:
    recipe = space / "recipe.yaml"
    recipe.write_text(RECIPES[case])
    code, _, stderr = llmfold("--model", session_model, "--recipe", recipe, "--output", space / "out")
    assert code == 2, stderr
    assert stderr.count("\n") == 1
    assert "unexpected" not in stderr
    assert os.listdir(space) == ["recipe.yaml"]


def test_version_and_help(llmfold: Cli) -> None:
    assert llmfold("--version") == (0, f"llmfold {package.__version__}\n", "")
    code, stdout, stderr = llmfold("--help")
    assert (code, stderr) == (0, "")
    for name in ("fold", "plan", "eval", "compare", "push", "methods", "env"):
        assert f"\n    {name} " in stdout
        code, helped, stderr = llmfold(name, "--help")
        assert (code, stderr) == (0, "")
        assert f"usage: llmfold {name} " in helped or "usage: llmfold [fold] " in helped


def test_every_option_of_a_fold_has_a_flag(llmfold: Cli) -> None:
    for command in ("fold", "plan"):
        helped = llmfold(command, "--help")[1]
        for field, _ in options_of(package.FoldConfig):
            assert f"  {spelled(field)} " in helped or f"  {spelled(field)}\n" in helped


def test_a_bug_is_a_sentence_that_asks_for_debug(
    llmfold: Cli, session_model: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("llmfold.api.fold_configs", bug)
    arguments = ("--model", session_model, "--ratio", 0.2, "--output", space / "out")
    code, _, stderr = llmfold(*arguments)
    assert (code, stderr.count("\n")) == (1, 1)
    assert "unexpected ZeroDivisionError: division by zero; run again with --debug" in stderr
    assert "Traceback" in llmfold(*arguments, "--debug")[2]


def test_ctrl_c_exits_with_130(llmfold: Cli, session_model: Path, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmfold.api.fold_configs", interrupt)
    code, _, stderr = llmfold("--model", session_model, "--ratio", 0.2, "--output", space / "out")
    assert code == 130
    assert stderr == "llmfold: interrupted; run the same command again to resume at the last whole layer\n"


def test_a_terminal_of_plain_letters(session_model: Path, at_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that cannot show an arrow must not end the run."""
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert cli.main(["plan", "--model", str(session_model), "--mlp-ratio", "0.25"]) == 0
    plain.flush()
    assert b"48 ? 36" in plain.buffer.getvalue()  # type: ignore[attr-defined]


def test_demo_is_the_shipped_checkpoint(llmfold: Cli, space: Path) -> None:
    if not (demo_folder() / "model.safetensors").exists():
        pytest.skip("the demo checkpoint is not in this checkout")
    assert llmfold("--model", "demo", "--ratio", 0, "--quiet", "--output", space / "out") == (0, "", "")
    assert tensor_hashes(space / "out") == tensor_hashes(demo_folder())
    assert json.loads((space / "out" / "report.json").read_text())["source"]["name"] == "demo"
