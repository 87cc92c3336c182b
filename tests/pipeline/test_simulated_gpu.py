"""The tests of the accelerator on a machine without one: on a GPU that is made of the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, environment

from llmfold_kernels.dispatch import installed

HERE = ROOT / "tests" / "simulated_gpu"


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("simulating a GPU takes Linux and a C++ compiler")
    library, torch_folder = tmp_path_factory.mktemp("guard") / "guard.so", Path(torch.__file__).parent
    libraries = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    options = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", *libraries]
    done = subprocess.run([compiler, HERE / "guard.cpp", "-o", library, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a GPU of its own to offer")
def test_folds_on_a_simulated_gpu(guard: Path) -> None:
    """By torch's own operations, and beside it some by the kernels in Triton's interpreter, which takes its time."""
    runs = [_started(guard, interpret="0", which="")]
    if installed():
        runs.append(_started(guard, interpret="1", which="twice and adaptive or would and paper"))
    for run in runs:
        said, _ = run.communicate()
        assert run.returncode == 0, said[-4000:]
        assert "skipped" not in said


def _started(guard: Path, *, interpret: str, which: str) -> subprocess.Popen[str]:
    variables = environment(LD_PRELOAD=str(guard), TRITON_INTERPRET=interpret)
    variables["PYTHONPATH"] += os.pathsep + str(HERE)
    tests = [ROOT / "tests" / "pipeline" / "test_device.py", "-q", "-k", which]
    command = [sys.executable, "-m", "pytest", "-p", "simulated_gpu", "-p", "no:cacheprovider", *tests]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
