"""Peak anonymous memory of this process: mapped files count as resident, but the kernel can drop them at will."""

import ctypes
import resource
import sys
import threading
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PERIOD = 0.02
_M_MMAP_THRESHOLD = -3
_RETURNED_BYTES = 1 << 20


def anonymous_bytes() -> int:
    """Anonymous resident memory in bytes (RssAnon); where the system does not tell, the peak resident set."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far, in bytes, mapped files and libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Samples anonymous memory in a thread while it is open; ``bytes`` holds the largest value seen."""

    def __init__(self) -> None:
        """Take the first sample."""
        self.bytes = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llmfold-memory", daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __enter__(self) -> "PeakMemory":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread and take the last sample."""
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous_bytes())


def return_freed_blocks() -> None:
    """Have glibc give freed blocks of 1 MiB and more back to the system at once.

    By itself it keeps blocks of up to 32 MB on its heap once one of that size was freed, and a tensor that outlives its
    neighbours then holds layers of freed memory: how many differs from run to run. Other allocators are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)
