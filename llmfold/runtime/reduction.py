"""Processes that measure together: each computes its blocks of rows, and all add up the same results in one order.

A sum is therefore the same, bit for bit, whatever the number of processes. Blocks belong to a process by their place
in a list; what is written to shared files in :meth:`Team.in_order` or :meth:`Team.each` is there for all once the call
is over.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from llmfold.runtime.distributed import Ranks, Tensors
from llmfold.runtime.oom import in_smaller_chunks

T = TypeVar("T")
R = TypeVar("R")


class Team:
    """The processes of a run, on one machine; a process on its own is a team of one."""

    def __init__(self, ranks: Ranks | None = None, device: torch.device | None = None) -> None:
        """Set up; nothing is exchanged yet. Results of other processes are put on ``device``, or stay on the CPU."""
        self._ranks, self._device = ranks or Ranks(), device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this is the process that makes files and removes them."""
        return self._ranks.leads

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self._ranks.count

    def share(self, units: Sequence[T]) -> Sequence[T]:
        """The units that fall to this process, by their place in the list."""
        return self._ranks.mine(units)

    def within_memory(self, work: Callable[[int], R], chunk: int, what: str) -> tuple[R, int]:
        """See :func:`llmfold.runtime.oom.in_smaller_chunks`; of several processes none changes its chunks."""
        return in_smaller_chunks(work, chunk, what) if self._ranks.count == 1 else (work(chunk), chunk)

    def wait(self) -> None:
        """Return once all have come here."""
        self._ranks.gather(None)

    def made(self, make: Callable[[bool], R]) -> R:
        """What ``make(True)`` creates on one process and ``make(False)`` then opens on the others."""
        if self.leads:
            found = make(True)
            self.wait()
        else:
            self.wait()
            found = make(False)
        return found

    def each(self, blocks: Sequence[T], act: Callable[[T], object]) -> None:
        """Act on every block, each in one of the processes; all wait for one another."""
        for block in self._ranks.mine(blocks):
            act(block)
        self.wait()

    def in_order(self, blocks: Sequence[T], compute: Callable[[T], Tensors]) -> Iterator[Tensors]:
        """Yield ``compute(block)`` for every block, in order, in every process; each is computed in one of them."""
        ranks = self._ranks
        for start in range(0, len(blocks), ranks.count):
            around = blocks[start : start + ranks.count]
            own = compute(around[ranks.rank]) if ranks.rank < len(around) else None
            for source in range(len(around)):
                yield tuple(tensor.to(self._device) for tensor in ranks.tensors_of(source, own))
