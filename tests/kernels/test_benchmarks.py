"""The benchmarks run where there is no GPU; what they measure is not for a test to judge."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, environment

from llmfold_kernels.dispatch import interpreted


@pytest.mark.skipif(interpreted(), reason="benchmarks do not interpret")
def test_a_table_with_command_and_device(tmp_path: Path) -> None:
    script = ROOT / "kernels" / "benchmarks" / "clustering.py"
    words = ["--size", "tiny", "--repeats", "1", "--device", "cpu", "--only", "torch", "llmfold", "flash"]
    command = [sys.executable, script, *words, "--output", tmp_path / "tables"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "tables" / "clustering.md").read_text(encoding="utf-8")
    assert "`python kernels/benchmarks/clustering.py --size tiny" in text
    assert str(tmp_path) not in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "inertia / bound 1.0" in rows["llmfold Gram + Ward"]
    assert "not run" in rows["flash-kmeans, 10 iterations"]
    assert "over one full product" in text
