"""From folded layers to bytes on the disk, beside the work on what comes next."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import LayerMethod
from llmfold.models import Role
from llmfold.pipeline.run import Run, layer_unit
from llmfold.runtime.copy_stream import CopyStream
from llmfold.runtime.prefetch import WriteBehind


class Sink:
    """Puts folded layers into their outputs: one thread copies them into the files, another waits for the disk.

    A method that carries state must see a layer committed before it folds the next: there both are done at once.
    """

    def __init__(self, runs: Sequence[Run], method: LayerMethod) -> None:
        self._first, self._method, self._lane = runs[0], method, CopyStream(runs[0].device)
        threads = runs[0].config.independent
        self._copies = WriteBehind(enabled=threads)
        self._commits = WriteBehind(enabled=threads, waiting=2 * len(runs))
        self._threads = ExitStack()

    def put(self, run: Run, index: int, folded: dict[Role, Tensor], record: LayerRecord) -> None:
        """Write a layer; once this or a later call, or the threads, are through with it, it is journalled."""
        for stage, seconds in record.seconds.items():
            run.stages.add(stage, seconds)
        run.listener.stage(f"layer {index}: write")
        with run.stages("write"):
            self._copies.submit(partial(self._copy, run, index, folded, record, self._lane.record()))

    def _copy(
        self, run: Run, index: int, folded: dict[Role, Tensor], record: LayerRecord, mark: torch.cuda.Event | None
    ) -> None:
        with self._lane.wait(mark):
            digests = run.write_layer(index, folded)
        self._method.flush()
        self._commits.submit(partial(self._commit, run, index, digests, record))

    def _commit(self, run: Run, index: int, digests: dict[str, str], record: LayerRecord) -> None:
        run.finished(layer_unit(index), digests, dataclasses.asdict(record))
        self._first.count_layers()

    def copied(self) -> None:
        """Return once no folded layer is held here any more."""
        with self._first.stages("write"):
            self._copies.wait()

    def settled(self) -> None:
        """Return once everything is on the disk."""
        self.copied()
        with self._first.stages("write"):
            self._commits.wait()

    def __enter__(self) -> "Sink":
        self._threads.enter_context(self._commits)
        self._threads.enter_context(self._copies)  # left first: what is copied is committed yet
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.__exit__(kind, error, trace)
