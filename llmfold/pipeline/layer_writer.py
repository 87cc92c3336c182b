"""From folded layers to bytes on the disk, beside the work on what comes next."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import LayerMethod
from llmfold.models import Role
from llmfold.pipeline.run import Run, layer_unit
from llmfold.runtime.copy_stream import CopyStream
from llmfold.runtime.prefetch import WriteBehind


class LayerWriter:
    """Puts folded layers into their outputs: one thread copies them into the files, another waits for the disk.

    A method that carries state must see a layer committed before it folds the next: there both are done at once.
    """

    def __init__(self, runs: Sequence[Run], method: LayerMethod, stack: ExitStack) -> None:
        """Start the threads, which end with ``stack``."""
        self._first, self._method, self._lane = runs[0], method, CopyStream(runs[0].device)
        enabled = runs[0].config.independent
        self._commits = stack.enter_context(WriteBehind(enabled=enabled, waiting=2 * len(runs)))
        self._copies = stack.enter_context(WriteBehind(enabled=enabled))  # left first: what is copied is committed yet

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
        self._method.sync_state()
        self._commits.submit(partial(self._commit, run, index, digests, record))

    def _commit(self, run: Run, index: int, digests: dict[str, str], record: LayerRecord) -> None:
        run.commit(layer_unit(index), digests, dataclasses.asdict(record))
        self._first.count_layers()

    def wait_copied(self) -> None:
        """Return once no folded layer is held here any more."""
        with self._first.stages("write"):
            self._copies.wait()

    def wait_committed(self) -> None:
        """Return once everything is on the disk."""
        self.wait_copied()
        with self._first.stages("write"):
            self._commits.wait()
