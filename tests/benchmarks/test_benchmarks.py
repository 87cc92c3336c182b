"""The benchmarks run where there is no GPU; what they measure is not for a test to judge."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, forked_program

from llmfold_kernels.dispatch import interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="benchmarks do not interpret")


def benchmark(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "benchmarks" / f"{name}.py"

    def work() -> None:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")

    return forked_program(work, script, *words)


def table(tmp_path: Path, name: str, *words: str) -> str:
    common = ["--size", "tiny", "--device", "cpu", "--repeats", "1"]
    done = benchmark(name, *common, *words, "--output", tmp_path / "tables")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "tables" / f"{name}.md").read_text(encoding="utf-8")
    assert f"`python benchmarks/{name}.py --size tiny" in text
    assert str(tmp_path) not in text
    return text


@pytest.mark.slow
def test_a_table_with_command_and_device(tmp_path: Path) -> None:
    text = table(tmp_path, "clustering", "--only", "torch", "llmfold", "flash")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "inertia / bound 1.0" in rows["llmfold Gram + Ward"]
    assert "not run" in rows["flash-kmeans, 10 iterations"]
    assert "over one full product" in text


@pytest.mark.slow
def test_a_whole_fold_beside_a_copy(tmp_path: Path) -> None:
    text = table(tmp_path, "fold", "--layers", "2", f"--folder={tmp_path}")
    assert "clustering of 2 layers" in text
    assert "over copy of the files: " in text


def test_widths_beside_each_other(tmp_path: Path) -> None:
    words = ["--hidden", "16", "--width", "300", "--tokens", "4", "--repeats", "2", "--output", tmp_path]
    done = benchmark("widths", *words)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "widths-torch-float32-cpu.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == ["256", "128", "64", "32", "8", "1"]
    for row in rows[1:]:
        grain, widths = int(row[0].strip("| ")), [int(width) for width in row[1].split(", ")]
        assert all(width % grain == 0 and width % (2 * grain) for width in widths) or grain == 256
    assert rows[1][2:] == ["1.000", "1.000–1.000", "1.000", "1.000–1.000 |"]


def test_nothing_is_made_for_a_fold_that_is_not_wanted(tmp_path: Path) -> None:
    words = ["--only", "no such thing", "--folder", tmp_path / "missing", "--output", tmp_path]
    assert benchmark("fold", *words).returncode == 0
    assert not list(tmp_path.iterdir())
