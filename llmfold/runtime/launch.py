"""What a process knows of the others of its run before they meet, and which of them tells of an error.

Nothing here imports torch before the processes have met, so that the command line answers at once.
"""

import os
import signal
import threading
from typing import Any

from llmfold.errors import LlmfoldError, UsageError

gloo_groups: list[Any] = []
"""The process group of the run, once its processes have met."""


class PeerLostError(LlmfoldError):
    """Another process of the run has ended; what is journalled stays."""

    def __init__(self) -> None:
        """Its sentence is the same whoever has ended."""
        super().__init__(
            "a process of this run has ended early; finished layers are kept: run the same command again to resume"
        )


class AbortedByMainError(LlmfoldError):
    """The run has been refused or has failed, and rank 0 reports why; the other processes end silently."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Take message and exit code of the error on rank 0."""
        super().__init__(message)
        self.exit_code = exit_code


def world_size() -> int:
    """Number of processes that a launcher has started for this run; 1 without one."""
    named = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if named and count.isdecimal() else 1


def local_world_size() -> int:
    """Processes of the run on this machine, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def is_main() -> bool:
    """Whether this is rank 0, known before the processes have met."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def should_report(error: BaseException) -> bool:
    """Whether this process is the one to tell of an error that ends the run: the first that comes to know of it."""
    if isinstance(error, AbortedByMainError):
        return False
    if not gloo_groups:  # bad options are bad in every process
        return is_main() or not isinstance(error, UsageError)
    import torch.distributed as dist

    ignore_sigterm()
    try:
        return bool(dist.distributed_c10d._get_default_store().add("llmfold/told", 1) == 1)
    except RuntimeError:  # the store went with the process that held it
        return True


def ignore_sigterm() -> None:
    """From here on the process ends by itself: another SIGTERM must not cut its error message off."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
