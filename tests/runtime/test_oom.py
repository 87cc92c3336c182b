"""A GPU whose memory runs out: simulated, by errors of the class that torch raises there."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import SINGLE, fold, tiny_model

from llmfold.data.sampling import Sampler
from llmfold.errors import DeviceError
from llmfold.methods.dense import LayerInputs
from llmfold.runtime.oom import in_smaller_chunks, on_host_instead

ROOM = 3


def scarce(function: Any) -> Any:
    """The same where no more than ``ROOM`` sequences fit."""

    def called(inputs: LayerInputs, part: slice) -> Any:
        if part.stop - part.start > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(inputs, part)

    return called


def test_chunks_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def work(size: int) -> str:
        tried.append(size)
        if size > ROOM:
            raise torch.OutOfMemoryError
        return "done"

    assert in_smaller_chunks(work, 8, "layer 7") == ("done", 2)
    assert tried == [8, 4, 2]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "layer 7" in caplog.text
    assert "2 sequences" in caplog.text


def test_nothing_is_said_where_all_fits(caplog: pytest.LogCaptureFixture) -> None:
    assert in_smaller_chunks(lambda size: size, 8, "layer 7") == (8, 8)
    assert on_host_instead(lambda device: device.type, torch.device("cuda"), "layer 7") == "cuda"
    assert not caplog.records


def test_what_never_fits_ends_with_a_sentence() -> None:
    def work(size: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(DeviceError, match=r"layer 7 .* --device cpu"):
        in_smaller_chunks(work, 8, "layer 7")


def test_other_errors_pass() -> None:
    def work(size: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        in_smaller_chunks(work, 8, "layer 7")


def test_the_host_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    def work(device: torch.device) -> str:
        if device.type == "cuda":
            raise torch.OutOfMemoryError
        return device.type

    assert on_host_instead(work, torch.device("cuda"), "layer 7") == "cpu"
    assert len(caplog.records) == 1


def test_a_fold_in_smaller_chunks_is_the_same_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(tmp_path / "m")
    options: dict[str, Any] = {"method": "self", "ratio": 0.25, "num_samples": 32, "sequence_length": 16, "refine": 0}
    roomy = fold(model, output=tmp_path / "roomy", **options)
    monkeypatch.setattr(LayerInputs, "forward", scarce(LayerInputs.forward))
    found = fold(model, output=tmp_path / "scarce", **options)
    assert ["layer 0" in record.getMessage() for record in caplog.records] == [True] * 2  # the size found is kept
    for before, after in zip(roomy.layers, found.layers, strict=True):
        for part in ("mlp", "attention"):
            if before[part]:
                assert after[part]["error_after_repair"] == pytest.approx(before[part]["error_after_repair"], rel=0.03)
    first = "model.layers.0.mlp.down_proj.weight"
    expected, got = (load_file(tmp_path / name / SINGLE)[first] for name in ("roomy", "scarce"))
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-3)


def test_where_nothing_smaller_can_be_tried_it_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Sampler, "sample", out_of_memory)
    with pytest.raises(DeviceError, match="the memory of the GPU does not suffice: pass --device cpu"):
        fold(tiny_model(tmp_path / "m"), method="self", ratio=0.25, output=tmp_path / "out", num_samples=8)
