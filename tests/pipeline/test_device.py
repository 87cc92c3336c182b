"""Folding on the accelerator where there is one: what the host would fold, and the same bytes every time."""

import threading
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from images.networks import image_model, saved
from safetensors.torch import load_file
from support import SINGLE, file_hashes, fold, tensor_hashes, tiny_model

import llmfold
from llmfold.checkpoint import Source
from llmfold.images.config import ImageConfig
from llmfold.images.measuring import implied_inputs
from llmfold.images.model import open_image_model
from llmfold.inversion.deep import InversionOptions
from llmfold.runtime.copy_stream import CopyStream

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAMPLED: dict[str, Any] = {"ratio": 0.25, "num_samples": 16, "sequence_length": 16}
METHODS: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper", "ratio": 0.25},
    "aligned": {"method": "paper", "ratio": 0.25, "align": "gauge", "repair": "variance", "cluster": "hartigan"},
    "self": {"method": "self", "refine": 20, **SAMPLED},
    "adaptive": {"method": "self", "allocation": "adaptive", "refine": 0, **SAMPLED},
    "weights": {"method": "weights", "ratio": 0.25, "effort": "quick"},
    "llm-pruner": {"method": "llm-pruner", "data": "self", **SAMPLED},
    "flap": {"method": "flap", "data": "self", **SAMPLED},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "model"
    return tiny_model(folder, hidden_size=64, intermediate_size=192, head_dim=16, num_hidden_layers=2)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_twice(tmp_path: Path, source: Path, method: str) -> None:
    for name in ("once", "again"):
        fold(source, output=tmp_path / name, device=str(DEVICE), **METHODS[method])
    assert file_hashes(tmp_path / "once") == file_hashes(tmp_path / "again")


@pytest.mark.parametrize("method", ["paper", "aligned"])
def test_what_the_host_would_have_folded(tmp_path: Path, source: Path, method: str) -> None:
    found = fold(source, output=tmp_path / "device", device=str(DEVICE), **METHODS[method])
    expected = fold(source, output=tmp_path / "host", device="cpu", **METHODS[method])
    assert found.plan["layers"] == expected.plan["layers"]
    tensors = load_file(tmp_path / "host" / SINGLE)
    for name, tensor in load_file(tmp_path / "device" / SINGLE).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-4, msg=name)


def test_several_ratios_give_the_bytes_of_one_each(tmp_path: Path, source: Path) -> None:
    ratios = (0.1, 0.3)
    options: dict[str, Any] = {"method": "paper", "device": str(DEVICE), "fidelity_tokens": 0}
    reports = llmfold.sweep(source, ratios, output=tmp_path / "all", **options)
    for ratio, report in zip(ratios, reports, strict=True):
        fold(source, output=tmp_path / str(ratio), ratio=ratio, **options)
        assert tensor_hashes(report.output) == tensor_hashes(tmp_path / str(ratio))


def test_a_lane_waits_for_what_was_done_before_its_mark_and_for_nothing_after() -> None:
    x, lane = torch.zeros(1000, device=DEVICE), CopyStream(DEVICE)
    found: list[torch.Tensor] = []

    def work_long() -> None:
        if DEVICE.type == "cuda":
            torch.cuda._sleep(10**9)

    work_long()
    x += 1
    mark = lane.record()

    def copy() -> None:
        with lane.wait(mark):
            found.append(x.cpu())

    work_long()
    later = lane.record()
    thread = threading.Thread(target=copy)
    thread.start()
    thread.join()
    if later is not None:
        assert not later.query()
    assert torch.equal(found[0], torch.ones(1000))


@pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU whose memory could run out")
def test_where_memory_runs_out_the_host_folds_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The weights of a layer fit, its Gram matrix of 67 megabytes does not."""
    source = tiny_model(tmp_path / "m", hidden_size=64, intermediate_size=4096, num_hidden_layers=1)
    fold(source, output=tmp_path / "warm", device=str(DEVICE), **METHODS["paper"])
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 40 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        fold(source, output=tmp_path / "scarce", device=str(DEVICE), **METHODS["paper"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    fold(source, output=tmp_path / "host", device="cpu", **METHODS["paper"])
    assert "doing it on the host" in caplog.text
    assert tensor_hashes(tmp_path / "scarce") == tensor_hashes(tmp_path / "host")


def test_images_are_inverted_on_the_device_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(InversionOptions, count=4, steps=2)
    monkeypatch.setattr(import_module("llmfold.modules.fold"), "InversionOptions", short)
    folder = saved(tmp_path / "net", image_model("basic"))
    model = open_image_model(Source(folder, "net", None), "ResNetForImageClassification")
    found, expected = (
        implied_inputs(model, ImageConfig("net", 0.3, device=device), lambda stage: None)
        for device in (str(DEVICE), "cpu")
    )
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
