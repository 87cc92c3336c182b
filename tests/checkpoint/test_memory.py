"""Weights pass from the source to the output without ever being held: anonymous memory stays bounded."""

import subprocess
import sys
from pathlib import Path

import pytest

from .builders import raw_safetensors, write_config

MEGABYTES = 120

COPY = """
import sys, threading, time
from pathlib import Path
from llmfold.checkpoint import Checkpoint, ShardWriter, TensorSpec, plan_shards

def rss_anon():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def mapped():
    return "model.safetensors" in open("/proc/self/maps").read()

peak, stop = [0.0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], rss_anon())
        time.sleep(0.001)

source, output = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint = Checkpoint.open(source)
info = checkpoint.tensors["w"]
before = rss_anon()
threading.Thread(target=watch, daemon=True).start()
with ShardWriter(plan_shards([TensorSpec("w", info.dtype, info.shape)], 10**10), output) as writer:
    writer.create()
    tensor = checkpoint.read("w")
    assert mapped()
    writer.write("w", tensor)
copying = peak[0] - before
copy = tensor.clone()
time.sleep(0.05)
cloning = peak[0] - before
del tensor
assert not mapped(), "the map outlives the tensor"
print(copying, cloning)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is told by Linux only")
def test_reading_and_writing_a_large_tensor(tmp_path):
    nbytes = MEGABYTES << 20
    source = write_config(tmp_path / "source")
    header = {"w": {"dtype": "BF16", "shape": [nbytes // 2048, 1024], "data_offsets": [0, nbytes]}}
    raw_safetensors(source / "model.safetensors", header, nbytes)
    output = tmp_path / "output"
    output.mkdir()
    done = subprocess.run([sys.executable, "-c", COPY, source, output], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    copying, cloning = map(float, done.stdout.split())
    assert copying < 64
    assert cloning > MEGABYTES * 0.9, "the meter does not measure"
