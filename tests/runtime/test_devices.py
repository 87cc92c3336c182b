from pathlib import Path

import pytest
import torch

from llmfold.errors import UsageError
from llmfold.runtime import devices
from llmfold.runtime.devices import compute_dtype, multiplies_bfloat16, pick_device

CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(UsageError, match="--device meta cannot be used here"):
        pick_device("meta")


def test_a_device_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(()))  # as where there is one
    with pytest.raises(UsageError, match="--device mps is not supported: pass cpu"):
        pick_device("mps")


@pytest.mark.parametrize(
    ("device", "native", "stored", "expected"),
    [
        (CPU, False, F32, F32),
        (CPU, False, BF16, F32),
        (CPU, False, F16, F32),
        (CPU, True, F32, F32),
        (CPU, True, BF16, BF16),
        (CPU, True, F16, F32),
        (CUDA, False, F32, F32),
        (CUDA, False, BF16, BF16),
        (CUDA, False, F16, F16),
        (OTHER, True, BF16, F32),
    ],
)
def test_auto_keeps_a_half_dtype_where_it_is_multiplied(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, native: bool, stored: torch.dtype, expected: torch.dtype
) -> None:
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda: native)
    assert compute_dtype("auto", device, stored) == expected


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_a_name_decides(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert compute_dtype(name, CPU, F32) == compute_dtype(name, CUDA, BF16) == dtype


@pytest.mark.parametrize("name", ["float64", "int8", "stored", ""])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"--compute-dtype is .*; choose from auto, float32, bfloat16, float16"):
        compute_dtype(name, CPU, F32)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_tile amx_bf16\nbugs\t\t: spectre_v1\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16 dgh\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 fma amx_tile\n", False),
        ("processor\t: 0\nmodel name\t: bf16 avx512_bf16\nflags\t\t: fpu sse2\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_instructions_on_bfloat16_are_read_from_the_flags(tmp_path: Path, cpuinfo: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert multiplies_bfloat16(path) is expected


def test_torch_is_asked_where_the_system_lists_no_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for answer in (True, False):
        for name in names:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
        assert multiplies_bfloat16(tmp_path / "nowhere") is answer
    for name in names:
        monkeypatch.delattr(torch.cpu, name)
    assert multiplies_bfloat16(tmp_path / "nowhere") is False
