"""Several processes on one fold, started by ``torchrun`` or ``accelerate launch``, on one machine or more.

They share the work folder (several machines: on a shared file system) and communicate through gloo, on GPUs too: all
that travels between them is control. Rank 0 opens and publishes; the work in between is dealt out.
"""

import datetime
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from llmfold.errors import LlmfoldError, UsageError
from llmfold.runtime.launch import AbortedByMainError, PeerLostError, gloo_groups, ignore_sigterm, world_size

T = TypeVar("T")
Tensors = tuple[Tensor, ...]
_PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others: they may be sampling for hours, and a dead one is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among those of the run; the only one where nothing has launched several.

    Attributes:
        rank: from 0.
        count: processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which opens, publishes and reports."""
        return self.rank == 0

    def shard(self, units: Sequence[T]) -> Sequence[T]:
        """The units that fall to this process, in order."""
        return units[self.rank :: self.count]

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Call ``work`` on rank 0 while the others wait, and return its result on all.

        Raises:
            AbortedByMainError: on the other processes, where rank 0 raised an LlmfoldError.
        """
        if self.count == 1:
            return work()
        outcome = self._broadcast(_attempt(work) if self.is_main else None)
        if isinstance(outcome, LlmfoldError):
            raise self.reported(outcome)
        return cast(T, outcome)

    def run_main_first(self, work: Callable[[], T]) -> T:
        """Call ``work`` on all processes, but on rank 0 first: it stores what the others then read.

        Raises:
            AbortedByMainError: as :meth:`run_on_main`.
        """
        results: list[T] = []
        self.run_on_main(lambda: results.append(work()))
        return results[0] if results else work()

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        """Call ``work`` on all processes, and return every result on all, by rank.

        Raises:
            LlmfoldError: on rank 0, what the first process that failed has raised.
            AbortedByMainError: on the other processes, where any has failed.
        """
        if self.count == 1:
            return [work()]
        outcome = _attempt(work)
        outcomes = self.gather(outcome)
        outcomes[self.rank] = outcome  # the error itself, with its traceback
        for result in outcomes:
            if isinstance(result, LlmfoldError):
                raise self.reported(result)
        return cast(list[T], outcomes)

    def reported(self, error: LlmfoldError) -> LlmfoldError:
        """The error to raise where all processes know of ``error``: rank 0 raises it, the others end silently."""
        return error if self.is_main else AbortedByMainError(str(error), error.exit_code)

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank; all wait for one another."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _peer_loss():
            dist.all_gather_object(values, value, group=gloo_groups[0])
        return values

    def broadcast_tensors(self, source: int, tensors: Tensors | None) -> Tensors:
        """The ``tensors`` that the process ``source`` passes, on all; on the CPU where they come from another."""
        passed = tensors if source == self.rank else None
        if self.count == 1 and passed is not None:
            return passed
        buffers = [tensor.detach().cpu().contiguous() for tensor in passed or ()]
        kinds = self._broadcast([(tensor.shape, tensor.dtype) for tensor in buffers], source)
        if passed is None:
            buffers = [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
        with _peer_loss():
            for tensor in buffers:
                dist.broadcast(tensor, src=source, group=gloo_groups[0])
        return tuple(buffers) if passed is None else passed

    def _broadcast(self, value: Any, source: int = 0) -> Any:
        values = [value]
        with _peer_loss():
            dist.broadcast_object_list(values, src=source, group=gloo_groups[0])
        return values[0]


def check_alike(ranks: Ranks, threads: int) -> None:
    """Raise UsageError unless all processes compute with as many threads: the bits of their sums depend on it."""
    counts = sorted(set(ranks.gather(threads)))
    if len(counts) > 1:
        message = f"the processes of this run have {counts[0]} to {counts[-1]} threads each"
        raise ranks.reported(UsageError(f"{message}; set OMP_NUM_THREADS alike everywhere"))


def _attempt(work: Callable[[], T]) -> T | LlmfoldError:
    """The result of ``work``, or the error that the other processes are to know of."""
    try:
        return work()
    except PeerLostError:
        raise
    except LlmfoldError as error:
        return error


@contextmanager
def _peer_loss() -> Iterator[None]:
    """Raise PeerLostError for a broken connection: a process has gone."""
    try:
        yield
    except RuntimeError as error:
        ignore_sigterm()
        raise PeerLostError from error


def join_ranks() -> Ranks:
    """Meet the other processes of the run, once; a process on its own is rank 0 of 1.

    Where there are GPUs, each process takes the one of its local rank. From here on SIGTERM, by which launchers end
    the processes that are left when one has gone, raises :class:`PeerLostError`.
    """
    if world_size() == 1:
        return Ranks()
    if not gloo_groups:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        with _peer_loss():
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=_PATIENCE)
            gloo_groups.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _raise_peer_lost)
    return Ranks(dist.get_rank(), dist.get_world_size())


def _raise_peer_lost(*_: object) -> None:
    ignore_sigterm()
    raise PeerLostError
