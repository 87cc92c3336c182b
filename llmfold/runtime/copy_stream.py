"""A stream of the GPU beside the one that computes, so that what is copied off it does not wait for the next layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class CopyStream:
    """Work that starts once the device has come to a recorded event; on the CPU, where all is done in order, nothing.

    What is allocated before an event must be held until the work after it is over.
    """

    def __init__(self, device: torch.device) -> None:
        """Make a stream on ``device``, or none for the CPU."""
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def record(self) -> torch.cuda.Event | None:
        """Record an event at the point that this thread's work on the device has come to; None on the CPU."""
        if self._stream is None:
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self._stream.device).record_event()
        return event

    @contextmanager
    def wait(self, event: torch.cuda.Event | None) -> Iterator[None]:
        """Work on the stream from ``event`` on; all of it is over when the block is left."""
        if self._stream is None or event is None:
            yield
            return
        self._stream.wait_event(event)
        # A thread begins on the first GPU, and returning to a stream there would take memory of it.
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()
