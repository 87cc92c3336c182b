"""Processes that measure together: each computes its blocks of rows, and all add up the same results in one order.

A sum is therefore the same, bit for bit, whatever the number of processes. Blocks belong to a process by their place
in a list; what is written to shared files in :meth:`OrderedReduce.map_in_order` or :meth:`OrderedReduce.each` is there
for all once the call is over.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from llmfold.runtime.distributed import Ranks, Tensors
from llmfold.runtime.oom import in_smaller_chunks

T = TypeVar("T")
R = TypeVar("R")


class OrderedReduce:
    """The processes of a run, on one machine; a process on its own works alone.

    Attributes:
        is_main: whether this is the process that makes files and removes them.
        count: processes.
        shard: see :meth:`llmfold.runtime.distributed.Ranks.shard`.
    """

    def __init__(self, ranks: Ranks | None = None, device: torch.device | None = None) -> None:
        """Set up; nothing is exchanged yet. Results of other processes are put on ``device``, or stay on the CPU."""
        self._ranks, self._device = ranks or Ranks(), device or torch.device("cpu")
        self.is_main, self.count, self.shard = self._ranks.is_main, self._ranks.count, self._ranks.shard

    def with_oom_retry(self, work: Callable[[int], R], chunk: int, label: str) -> tuple[R, int]:
        """See :func:`llmfold.runtime.oom.in_smaller_chunks`; of several processes none changes its chunks."""
        return in_smaller_chunks(work, chunk, label) if self.count == 1 else (work(chunk), chunk)

    def wait(self) -> None:
        """Return once all processes have called this."""
        self._ranks.gather(None)

    def create_or_open(self, make: Callable[[bool], R]) -> R:
        """What ``make(True)`` creates on one process and ``make(False)`` then opens on the others."""
        if not self.is_main:
            self.wait()
            return make(False)
        created = make(True)
        self.wait()
        return created

    def each(self, blocks: Sequence[T], act: Callable[[T], object]) -> None:
        """Act on every block, each in one of the processes; all wait for one another."""
        for block in self.shard(blocks):
            act(block)
        self.wait()

    def map_in_order(self, blocks: Sequence[T], compute: Callable[[T], Tensors]) -> Iterator[Tensors]:
        """Yield ``compute(block)`` for every block, in order, in every process; each is computed in one of them."""
        ranks = self._ranks
        for start in range(0, len(blocks), ranks.count):
            batch = blocks[start : start + ranks.count]
            computed = compute(batch[ranks.rank]) if ranks.rank < len(batch) else None
            for source in range(len(batch)):
                yield tuple(tensor.to(self._device) for tensor in ranks.broadcast_tensors(source, computed))
