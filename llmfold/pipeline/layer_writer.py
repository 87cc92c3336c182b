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
from llmfold.models.pieces import Piece
from llmfold.pipeline.run import Run
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
        self._parts: dict[Run, tuple[dict[str, str], LayerRecord]] = {}
        self._copies = stack.enter_context(WriteBehind(enabled=enabled))  # left first: what is copied is committed yet

    def put(self, run: Run, piece: Piece, folded: dict[Role, Tensor], record: LayerRecord, *, last: bool) -> None:
        """Write a piece of a layer; once this or a later call, or the threads, are through with its last, it counts."""
        for stage, seconds in record.seconds.items():
            run.stages.add(stage, seconds)
        run.listener.stage(f"layer {piece.layer}: write")
        with run.stages("write"):
            self._copies.submit(partial(self._copy, run, piece, folded, record, self._lane.record(), last))

    def _copy(
        self,
        run: Run,
        piece: Piece,
        folded: dict[Role, Tensor],
        record: LayerRecord,
        mark: torch.cuda.Event | None,
        last: bool,
    ) -> None:
        digests, sofar = self._parts.setdefault(run, ({}, LayerRecord()))
        with self._lane.wait(mark):
            digests |= run.write_piece(piece, folded)
        sofar.add(record)
        if last:
            del self._parts[run]
            self._method.sync_state()
            self._commits.submit(partial(self._commit, run, piece.layer, digests, sofar))

    def _commit(self, run: Run, index: int, digests: dict[str, str], record: LayerRecord) -> None:
        run.commit_layer(index, digests, dataclasses.asdict(record))
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
