"""What the compiler makes of every kernel for an H100 or H200, at the size of LLaMA-7B."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment

from llmfold_kernels.dispatch import installed, interpreted

# The shared memory of an H100 is 227 KiB; a consumer GPU's is 99 KiB, and all but wide tiles keep to that.
SHARED, WIDE, REGISTERS, REGISTER_FILE = 99 * 1024, 227 * 1024, 255, 65536
HOT = ("gram", "wide gram", "assign", "wide assign", "nearest centre", "segment", "ward", "elimination", "row")


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="triton is not installed: it is to be had on Linux only")
@pytest.mark.skipif(interpreted(), reason="kernels are compiled in a process that does not interpret")
def test_every_kernel_fits_and_none_spills() -> None:
    script = Path(__file__).with_name("compile_sm90.py")
    variables = environment(TRITON_INTERPRET="0")
    done = subprocess.run([sys.executable, script], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert all(any(title.startswith(word) for title in report) for word in HOT)
    for title, used in report.items():
        assert used["shared"] <= (WIDE if title.startswith("wide") else SHARED), (title, used)
        assert used["registers"] <= REGISTERS, (title, used)
        assert used["registers"] * used["threads"] <= REGISTER_FILE, (title, used)
        # What wide tiles of the Gram product spill lies outside the loop over features: they are faster all the same.
        assert used["spills"] <= (1200 if title.startswith("wide gram") else 0), (title, used)
        if title.removeprefix("wide ").startswith(("gram", "assign")) and "bfloat16" in title:
            assert used["wgmma"] > 0, (title, used)
