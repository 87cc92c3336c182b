import threading
import time

import pytest
import torch
from torch import Tensor

from llmfold.errors import CheckpointError
from llmfold.runtime.prefetch import ReadAhead, WriteBehind


def layer(index: int) -> dict[str, Tensor]:
    return {"gate": torch.full((2,), float(index))}


def unchanged(index: int) -> None:
    """No source to change."""


def test_layers_come_in_order_and_one_is_read_ahead() -> None:
    read: list[int] = []
    started = threading.Event()

    def slow(index: int) -> dict[str, Tensor]:
        read.append(index)
        if index == 4:
            started.set()
        return layer(index)

    with ReadAhead(slow, unchanged, [3, 4, 5], pin=False) as ahead:
        assert ahead.take(3)["gate"].tolist() == [3, 3]
        assert started.wait(10)
        assert 5 not in read
        assert [float(ahead.take(i)["gate"][0]) for i in (4, 5)] == [4, 5]
    assert read == [3, 4, 5]


def test_a_damaged_layer_is_told_only_when_its_turn_comes() -> None:
    def damaged(index: int) -> dict[str, Tensor]:
        if index == 1:
            raise CheckpointError("tensor holds NaN")
        return layer(index)

    with ReadAhead(damaged, unchanged, range(3), pin=False) as ahead:
        ahead.take(0)
        time.sleep(0.05)
        with pytest.raises(CheckpointError, match="NaN"):
            ahead.take(1)


def test_a_layer_whose_source_changed_after_it_was_read_is_refused() -> None:
    def changed(index: int) -> None:
        raise CheckpointError(f"layer {index} changed")

    with ReadAhead(layer, changed, range(2), pin=False) as ahead, pytest.raises(CheckpointError, match="layer 0"):
        ahead.take(0)


def test_an_unused_read_is_dropped_without_a_word() -> None:
    with pytest.raises(KeyboardInterrupt), ReadAhead(layer, unchanged, range(3), pin=False):
        raise KeyboardInterrupt


def test_no_layers() -> None:
    with ReadAhead(layer, unchanged, [], pin=False):
        pass


@pytest.mark.parametrize("enabled", [False, True])
def test_writes_keep_their_order_and_are_done_at_the_end(enabled: bool) -> None:
    written: list[int] = []

    def write(index: int) -> None:
        time.sleep(0.02 if index == 0 else 0)
        written.append(index)

    with WriteBehind(enabled=enabled) as behind:
        for index in range(3):
            behind.submit(lambda index=index: write(index))
    assert written == [0, 1, 2]


@pytest.mark.parametrize("waiting", [1, 3])
@pytest.mark.parametrize("calls", [1, 2, 6])
def test_a_failed_write_is_raised_and_none_follows(calls: int, waiting: int) -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind(enabled=True, waiting=waiting) as behind:  # noqa: PT012
        behind.submit(fail)
        for call in range(calls - 1):
            behind.submit(lambda call=call: done.append(call))
    assert done == []


def test_the_write_under_way_is_finished_after_an_interrupt() -> None:
    written: list[int] = []

    def write() -> None:
        time.sleep(0.05)
        written.append(0)

    with pytest.raises(KeyboardInterrupt), WriteBehind(enabled=True) as behind:  # noqa: PT012
        behind.submit(write)
        raise KeyboardInterrupt
    assert written == [0]
