"""Several processes on one fold, started by ``torchrun`` or ``accelerate launch``, on one machine or more.

They share the work folder (several machines: on a shared file system) and speak through gloo, on GPUs too: all that
travels between them is control. Rank 0 opens and publishes; the work in between is dealt out.
"""

import datetime
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llmfold.errors import LlmfoldError, UsageError
from llmfold.runtime.launch import FollowerError, LostError, end_undisturbed, joined, launched

T = TypeVar("T")
Tensors = tuple[Tensor, ...]
_PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others: they may be sampling for hours, and a dead one is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """Place of this process among those of the run; the only one where nothing has launched several.

    Attributes:
        rank: from 0.
        count: processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that opens, publishes and talks."""
        return self.rank == 0

    def mine(self, units: Sequence[T]) -> Sequence[T]:
        """The units that fall to this process, in order."""
        return units[self.rank :: self.count]

    def lead(self, work: Callable[[], T]) -> T:
        """Have rank 0 do something that the others wait for, and give its result to all.

        Raises:
            FollowerError: on the other processes, where rank 0 raised an LlmfoldError.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None]
        if self.leads:
            try:
                outcome = [(True, work())]
            except LostError:
                raise
            except LlmfoldError as error:
                self._share([(False, (str(error), error.exit_code))])
                raise
        done, result = self._share(outcome)[0]
        if not done:
            raise FollowerError(*result)
        found: T = result
        return found

    def first(self, work: Callable[[], T]) -> T:
        """Do something on all processes, but on rank 0 first: it stores what the others then find.

        Raises:
            FollowerError: as :meth:`lead`.
        """
        result: list[T] = []
        self.lead(lambda: result.append(work()))
        return result[0] if result else work()

    def everyone(self, work: Callable[[], T]) -> list[T]:
        """Have all processes do their share of something, and give every result to all, by rank.

        Raises:
            LlmfoldError: on rank 0, what the first process that failed has raised.
            FollowerError: on the other processes, where any has failed.
        """
        if self.count == 1:
            return [work()]
        outcome: T | LlmfoldError
        try:
            outcome = work()
        except LostError:
            raise
        except LlmfoldError as error:
            outcome = error
        found = self.gather(outcome)
        found[self.rank] = outcome  # the error itself, with its traceback
        for result in found:
            if isinstance(result, LlmfoldError):
                raise result if self.leads else FollowerError(str(result), result.exit_code)
        return [result for result in found if not isinstance(result, LlmfoldError)]

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank; all wait for one another."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _noticing():
            dist.all_gather_object(found, value, group=_group())
        return found

    def tensors_of(self, source: int, own: Tensors | None) -> Tensors:
        """What the process ``source`` gives as its ``own``, in all of them; on the CPU where it comes from another."""
        mine = own if source == self.rank else None
        if self.count == 1 and mine is not None:
            return mine
        sent = [tensor.detach().cpu().contiguous() for tensor in mine or ()]
        kinds = self._share([[(tensor.shape, tensor.dtype) for tensor in sent]], source)[0]
        if mine is None:
            sent = [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
        with _noticing():
            for tensor in sent:
                dist.broadcast(tensor, src=source, group=_group())
        return tuple(sent) if mine is None else mine

    def _share(self, values: list[Any], source: int = 0) -> list[Any]:
        with _noticing():
            dist.broadcast_object_list(values, src=source, group=_group())
        return values


def check_alike(ranks: Ranks, threads: int) -> None:
    """Raise UsageError unless all processes compute with as many threads: the bits of their sums depend on it."""
    found = sorted(set(ranks.gather(threads)))
    if len(found) > 1:
        message = (
            f"the processes of this run have {found[0]} to {found[-1]} threads each; "
            "set OMP_NUM_THREADS alike everywhere"
        )
        raise UsageError(message) if ranks.leads else FollowerError(message, UsageError.exit_code)


@contextmanager
def _noticing() -> Iterator[None]:
    """A broken connection is a process that has gone."""
    try:
        yield
    except RuntimeError as error:
        end_undisturbed()
        raise LostError from error


def _group() -> Any:
    return joined[0]


def join_ranks() -> Ranks:
    """Meet the other processes of the run, once; a process on its own is rank 0 of 1.

    Where there are GPUs, each process takes the one of its local rank. From here on SIGTERM, by which launchers end
    the processes that are left when one has gone, raises :class:`LostError`.
    """
    if launched() == 1:
        return Ranks()
    if not joined:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        with _noticing():
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=_PATIENCE)
            joined.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _told_to_end)
    return Ranks(dist.get_rank(), dist.get_world_size())


def _told_to_end(number: int, frame: object) -> None:
    end_undisturbed()
    raise LostError
