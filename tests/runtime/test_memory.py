"""Memory is bounded by a layer, whatever the depth; eval/streaming_memory.py shows the same at real sizes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

from llmfold.runtime.memory import PeakMemory, anonymous_bytes

MB = 1_000_000


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("streaming_memory", ROOT / "eval" / "streaming_memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_three_times_the_layers_take_no_more_memory(
    tmp_path: Path, experiment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of 15 MB: were a part of each kept, eight more would show it; the whole of one is allowed as noise."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"method": "paper", "mlp_ratio": 0.25, "attention_ratio": 0.5, "fidelity_tokens": 0}
    few, many = (experiment.measure(tmp_path, n, 1024, 1024, options, from_disk=True) for n in (4, 12))
    layer = experiment.layer_bytes(1024, 1024)
    growth = [found["peak"] - found["base"] for found in (few, many)]
    assert layer > 14 * MB
    assert growth[0] > layer / 2, "the measurement saw no layer at all"
    assert growth[1] - growth[0] < layer
    assert many["peak"] <= 1.1 * few["peak"]
    assert growth[1] < 6 * layer


@pytest.mark.slow
def test_three_times_the_experts_take_no_more_memory(
    tmp_path: Path, experiment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of two experts, 25 MB, of layers of 59 and 160 MB; the check that follows runs whole layers."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"method": "paper", "mlp_ratio": 0.25, "verify": "shapes"}
    found = {n: experiment.measure(tmp_path, 2, 1024, 2048, options, experts=n) for n in (4, 12)}
    few, many = (each["peak"] - each["base"] for each in found.values())
    group = 2 * 3 * 1024 * 2048 * 2
    assert experiment.layer_bytes(1024, 2048, 12) > 6 * group
    assert few > group, "the measurement saw no group at all"
    assert many < few + group
    assert many < experiment.layer_bytes(1024, 2048, 12)


def test_the_peak_is_seen_although_it_has_gone() -> None:
    before = anonymous_bytes()
    with PeakMemory() as memory:
        block = bytearray(b"x" * (80 * MB))
        seen = anonymous_bytes()
        del block
    assert seen >= before + 70 * MB
    assert memory.bytes >= before


def test_mapped_files_are_not_anonymous(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "file"
    path.write_bytes(bytes(60 * MB))
    before = anonymous_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert anonymous_bytes() - before < 20 * MB
