"""The method and the family that the guides show work as the guides say."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from support import ROOT, environment, fold, logits, parameters, tensors

from llmfold import registry
from llmfold.models import finder

GUIDE = ROOT / "docs" / "adding-a-method.md"
NAME = "dice"
LIMIT = 40
FAMILY_GUIDE = ROOT / "docs" / "adding-a-family.md"
FAMILY_LIMIT = 60


def shown(title: str, guide: Path = GUIDE) -> str:
    """The code block of a title."""
    found = re.search(
        rf'^```python title="{re.escape(title)}"\n(.*?)^```$', guide.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"{guide.name} shows no {title}"
    return found[1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The method as a package that is installed: its module, and the entry point that the guide shows."""
    (tmp_path / f"{NAME}.py").write_text(shown(f"{NAME}.py"))
    entry = re.search(r"^```toml\n\[project\.entry-points\.\"(.+)\"\]\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    assert entry
    info = tmp_path / f"{NAME}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2].replace(chr(34), '')}")
    return tmp_path


@pytest.fixture
def imported(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The method in this process, for the time of a test."""
    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.syspath_prepend(str(package))
    import_module(NAME)
    yield
    del sys.modules[NAME]


def test_the_method_is_short() -> None:
    assert len(shown(f"{NAME}.py").splitlines()) < LIMIT


@pytest.mark.usefixtures("imported")
def test_it_folds_what_stock_transformers_loads(session_model: Path, space: Path) -> None:
    report = fold(session_model, method=NAME, ratio=0.2, output=space / "out")
    assert report.data == {"data": "none"}
    assert parameters(report.output) == report.parameters_after < report.parameters_before
    assert torch.isfinite(logits(report.output, torch.arange(16)[None])).all()
    before, after = tensors(session_model), tensors(report.output)
    name = "model.layers.0.mlp.gate_proj.weight"
    kept = (after[name][:, None] == before[name]).all(-1)
    assert kept.sum(1).eq(1).all()
    assert len(after[name]) < len(before[name])


@pytest.mark.usefixtures("imported")
def test_its_seed_decides(session_model: Path, space: Path) -> None:
    outputs = [
        fold(session_model, method=NAME, ratio=0.2, seed=seed, output=space / name).output
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    same, again, other = (tensors(output)["model.layers.0.mlp.up_proj.weight"] for output in outputs)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_the_command_line_finds_it_by_its_entry_point(package: Path, session_model: Path) -> None:
    surroundings = environment()
    surroundings["PYTHONPATH"] = os.pathsep.join((str(package), surroundings["PYTHONPATH"]))

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "llmfold", *map(str, arguments)]
        done = subprocess.run(command, env=surroundings, cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "dice\n    units drawn at random are kept\n    data: none\n" in run("methods")
    assert "dice" in run("plan", "--model", session_model, "--ratio", 0.2, "--method", NAME)


def test_a_family_with_names_of_its_own_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {name: shown(f"{name}.py", FAMILY_GUIDE) for name in ("toy", "test_toy")}
    assert sum(len(code.splitlines()) for code in codes.values()) <= FAMILY_LIMIT
    for name, code in codes.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(finder, "GATED", list(finder.GATED))
    import_module("test_toy").test_toy(tmp_path)
