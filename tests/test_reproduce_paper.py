"""eval/reproduce_paper.sh: its table, made of evaluations that stand."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

SCRIPT = (ROOT / "eval" / "reproduce_paper.sh").read_text()
FOUND = ROOT / "eval" / "results" / "evaluation" / "wiki-llama-self.json"


def test_the_table_has_the_dense_model_and_a_row_for_every_method(tmp_path: Path) -> None:
    program = SCRIPT.split("<< 'TABLE'\n")[1].rsplit("\nTABLE", 1)[0]
    for method in ("self", "paper"):
        shutil.copy(FOUND, tmp_path / f"{method}.json")
    subprocess.run([sys.executable, "-", str(tmp_path), "self", "paper"], input=program, text=True, check=True)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[:5]] == ["| method", "| ---", "| dense", "| self", "| paper"]
    assert lines[3].split(" | ")[1:] == lines[4].split(" | ")[1:] != lines[2].split(" | ")[1:]
    assert any(line.startswith("- ") for line in lines)


def test_the_shell_reads_it() -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    subprocess.run(["bash", "-n", str(ROOT / "eval" / "reproduce_paper.sh")], check=True)
