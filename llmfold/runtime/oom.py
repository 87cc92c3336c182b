"""What happens when the memory of a GPU runs out: smaller chunks or the host, and one line that says so."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from llmfold.errors import DeviceError

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ADVICE = "pass --device cpu, or free what else uses the GPU"


@contextmanager
def explain_oom(advice: str = _ADVICE) -> Iterator[None]:
    """Turn an OutOfMemoryError of the block, where nothing smaller can be tried, into a DeviceError.

    Args:
        advice: what a person can do.

    Raises:
        DeviceError: the GPU's memory has run out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"the memory of the GPU does not suffice: {advice}") from error


def in_smaller_chunks(work: Callable[[int], T], size: int, label: str) -> tuple[T, int]:
    """Do ``work(size)``; while the device's memory does not suffice, again from its start with half the size.

    Args:
        work: leaves what it started from as it was when it fails.
        size: sequences at once, to begin with.
        label: the work in words, for the notice.

    Returns:
        The result, and the size that it took.

    Raises:
        DeviceError: not even one sequence at a time fits.
    """
    while True:
        try:
            return work(size), size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise DeviceError(
                    f"{label} does not fit in the memory of the GPU, even one sequence at a time: {_ADVICE}"
                ) from error
        size //= 2
        torch.cuda.empty_cache()
        _log.warning("%s does not fit in the memory of the GPU: going on with %d sequences at once", label, size)


def on_host_instead(work: Callable[[torch.device], T], device: torch.device, label: str) -> T:
    """Do ``work(device)``, or on the CPU if the device's memory does not suffice."""
    try:
        return work(device)
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    torch.cuda.empty_cache()
    _log.warning("%s does not fit in the memory of the GPU: doing it on the host", label)
    return work(torch.device("cpu"))
