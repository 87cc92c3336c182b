"""The kernels themselves, in Triton's interpreter: a process of its own, since triton reads the switch once."""

import sys
from pathlib import Path
from subprocess import run

import pytest
from support import environment

from llmfold_kernels.dispatch import installed, interpreted

HERE = Path(__file__).parent


@pytest.mark.skipif(not installed(), reason="triton is not installed: it is to be had on Linux only")
@pytest.mark.skipif(interpreted(), reason="this is the process that interprets")
@pytest.mark.parametrize("sizes", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_all_kernels_agree_with_what_they_should_compute(sizes: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE]
    done = run(
        [*command, "-W", "ignore::RuntimeWarning", "-m", sizes],
        env=environment(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""),
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(not interpreted(), reason="asked only of the process that interprets")
def test_kernels_and_not_twins_are_tested_here() -> None:
    import torch

    from llmfold_kernels import on_triton

    assert on_triton(torch.ones(1), torch.ones(1, dtype=torch.float16))
    assert not on_triton(torch.ones(1, dtype=torch.float64))
