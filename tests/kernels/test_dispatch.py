from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmfold_kernels import dispatch


def test_without_triton_the_twin_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    assert not dispatch.on_triton(torch.ones(1))


def test_every_tensor_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    monkeypatch.setattr(dispatch, "interpreted", lambda: True)
    assert dispatch.on_triton(torch.ones(1), torch.ones(1, dtype=torch.bfloat16))
    assert not dispatch.on_triton(torch.ones(1), torch.ones(1, dtype=torch.float64))
    assert dispatch.on_triton(torch.ones(1, dtype=torch.float64), dtypes=(torch.float64,))


def test_the_cpu_is_no_place_for_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    assert not dispatch.on_triton(torch.ones(1))


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_before_ampere_use_torch(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    dispatch._is_capable.cache_clear()
    assert dispatch._is_capable(torch.device("cuda", 0)) == expected
    dispatch._is_capable.cache_clear()


def test_kernels_are_launched_where_their_rows_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(chosen.append(device)))
    second: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    with dispatch.launching_on(second):
        assert chosen == [second.device]
    with dispatch.launching_on(torch.ones(1)):
        assert len(chosen) == 1


@pytest.mark.parametrize("programs", [0, 1, 100, 263, 264, 10_000])
def test_splits_fill_a_device_and_are_never_more_than_there_is(programs: int) -> None:
    assert 1 <= dispatch.splits_for(programs, 7) <= 7
    splits, programs = dispatch.splits_for(programs, 10**6), max(1, programs)
    assert splits * programs <= max(264, programs)
    assert (splits + 1) * programs > 264
