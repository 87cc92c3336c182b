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


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a GPU of its own to offer")
@pytest.mark.parametrize(("interpret", "which"), [("0", ""), ("1", "twice and adaptive or would and paper")])
def test_folds_on_a_simulated_gpu(guard: Path, interpret: str, which: str) -> None:
    """By torch's own operations, and some by the kernels in Triton's interpreter, which takes its time."""
    if interpret == "1" and not installed():
        pytest.skip("triton is not installed: it is to be had on Linux only")
    variables = environment(LD_PRELOAD=str(guard), TRITON_INTERPRET=interpret)
    variables["PYTHONPATH"] += os.pathsep + str(HERE)
    tests = [ROOT / "tests" / "streaming" / "test_device.py", "-q", "-k", which]
    plugins = ["-p", "simulated_gpu", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, *tests]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout
