"""One fold: its plan, its work folder, and the steps from the source's tensors to the published folder."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.checkpoint import MARKER_FILE, Checkpoint, Journal, ShardWriter, WorkFolder, is_damage, plan_shards
from llmfold.checkpoint.base_card import carried_over
from llmfold.checkpoint.locate import locate
from llmfold.config import FoldConfig
from llmfold.data.tokens import TOKENS_FILE, resolve_effort
from llmfold.environment import machine
from llmfold.errors import CheckpointError, LlmfoldError, OutputError, UsageError
from llmfold.methods.base import FoldContext, LayerMethod, Output
from llmfold.methods.method import method_of
from llmfold.methods.source import BATCH_FOLDER, sample_batches
from llmfold.models import Role
from llmfold.models.context import Context
from llmfold.models.own_code import MODELING_FILE, modeling_source
from llmfold.models.pieces import Piece
from llmfold.models.stock_shape import StockShape
from llmfold.pipeline.depth import choose, stand_ins, without_blocks
from llmfold.pipeline.estimate import unit_tokens
from llmfold.pipeline.forward_pass import forward_pass_seconds
from llmfold.pipeline.opening import check_data, check_family, check_output_class, open_source, require_tokenizer
from llmfold.pipeline.output_config import output_config
from llmfold.pipeline.output_tokenizer import check_tokenizer_can_be_kept, keep_tokenizer
from llmfold.pipeline.portable import make_tokenizer_portable, source_notes
from llmfold.pipeline.progress import Listener
from llmfold.pipeline.provenance import origin, provenance, public_config, public_data, source_name
from llmfold.pipeline.verification import DamagedError, verify
from llmfold.planning import FoldPlan, Sensitivities, make_plan
from llmfold.planning.depth import removal_words
from llmfold.planning.sensitivity import SENSITIVITIES_FILE
from llmfold.records.fold import FoldRecord
from llmfold.records.saved import Save
from llmfold.registry import SELF_DATA
from llmfold.runtime.devices import pick_device
from llmfold.runtime.distributed import Ranks
from llmfold.runtime.launch import PeerLostError
from llmfold.runtime.memory import PeakMemory
from llmfold.runtime.reduction import OrderedReduce
from llmfold.runtime.storage import replace_json, write_error
from llmfold.runtime.timing import StageTimer, mean_seconds

METHOD, OUTSIDE, LAYER = "method", "outside", "layer-"


def layer_unit(index: int) -> str:
    """What the journal calls a layer."""
    return f"{LAYER}{index}"


class Run:
    """One fold, from source to published folder; its steps are called in their order here."""

    work: WorkFolder
    journal: Journal
    writer: ShardWriter
    context: FoldContext
    _head: dict[str, Any]

    def __init__(self, config: FoldConfig, listener: Listener, ranks: Ranks, stages: StageTimer, save: Save) -> None:
        """Open the source and plan; raises LlmfoldError where either cannot be."""
        self.listener, self.ranks, self._save = listener, ranks, save
        self.stages, self._checks = stages, StageTimer()
        self.device = pick_device(config.device)
        check_data(config)
        self.source = locate(config.model, config.revision)
        self.whole, self.whole_shape = open_source(self.source)
        check_family(config, self.whole_shape)
        require_tokenizer(config, self.source.folder)
        self.config = resolve_effort(config, self.whole_shape)
        self._take_out(stand_ins(self.config, self.whole_shape), {})
        check_output_class(self.checkpoint.config, self.plan)
        check_tokenizer_can_be_kept(self.checkpoint.folder, self.plan)
        self.data = public_data(config.data)
        self._done: set[str] = set()
        self._counted = 0
        self._notes: list[str] = []
        self._facts: dict[str, Any] = {"data": "none"}
        self.forward_pass: float | None = None

    def _take_out(self, blocks: tuple[int, ...], repairs: dict[str, Tensor]) -> None:
        """Go on with the model without some blocks, and with those that were repaired for it."""
        self.checkpoint, self.shape, self._removal = self.whole, self.whole_shape, None
        if blocks:
            view = without_blocks(self.whole, self.whole_shape, blocks, repairs)
            self.checkpoint, self.shape, self._removal = view
        self.plan = self._planned()

    def _planned(self, curves: Sensitivities | None = None) -> FoldPlan:
        return make_plan(self.shape, self.checkpoint.tensors, self.config, curves, self._removal)

    def open(self, stack: ExitStack) -> None:
        """Open the work folder and the journal, which ``stack`` closes."""
        output, ranks = self.config.output_path, self.ranks

        def open_on_main() -> tuple[dict[str, Any], set[str]]:
            head = origin(self.config, self.source, self.checkpoint)
            opening = WorkFolder.open(output, overwrite=self.config.overwrite, source=self.source.folder)
            self.work = stack.enter_context(opening)
            self.journal = stack.enter_context(self.work.open_journal(head))
            stack.enter_context(_tidy(self.work, self.journal))
            return head, set(self.journal.done)

        self._head, self._done = ranks.run_on_main(open_on_main)
        if not ranks.is_main:
            self.work = WorkFolder.join(output)
            self.journal = stack.enter_context(self.work.join_journal(self._head, ranks.rank))
        self._team = OrderedReduce(ranks if self.config.together else None, self.device)
        self.context = self._context_of(self.checkpoint, self.shape)

    def _context_of(self, checkpoint: Checkpoint, shape: "StockShape") -> FoldContext:
        return FoldContext(self.config, checkpoint, shape, self.work.folder, self.device, self._team)

    def settle_depth(self) -> None:
        """Choose the blocks that go as a whole, if any do, and repair those before them; all processes call this."""
        if not self.config.removes_blocks:
            return
        context, stage = self._context_of(self.whole, self.whole_shape), self.listener.stage
        if self.config.samples:
            with self.stages("sample"):
                self.ranks.run_on_all(partial(sample_batches, context, stage, self.ranks.shard))
        with self.stages("depth"), torch.no_grad():
            blocks = self.ranks.run_main_first(partial(method_of(self.config.method).blocks, context, stage))
            depth = choose(context, blocks, self.ranks, stage)
            left = len(self.whole_shape.layers) - len(depth.removed)
            repairs = blocks.repairs(depth.removed, context.read_layer, stage) if self.resumed < left else {}
        self._facts = depth.facts
        self._take_out(depth.removed, repairs)
        self.context = self._context_of(self.checkpoint, self.shape)
        self.listener.opened(len(self.shape.layers))

    def is_done(self, index: int) -> bool:
        """Whether layer ``index`` was finished before this run."""
        return layer_unit(index) in self._done

    @property
    def resumed(self) -> int:
        """Layers that were finished before this run."""
        return sum(unit.startswith(LAYER) for unit in self._done)

    def time_forward_pass(self) -> None:
        """Time the unit of the report; processes that share the work share a pass."""
        with self.stages("prepare"):
            seconds = forward_pass_seconds(Context(self.whole_shape), *unit_tokens(self.plan), self.device)
        self.forward_pass = seconds / (self.ranks.count if self.config.independent else 1)

    def build_method(self) -> LayerMethod | None:
        """The method of the run, having read or drawn what it measures on; None where all is folded already."""
        if self._folded:
            return None
        with self.stages("prepare"), torch.no_grad():
            if not self.plan.folded_layers:
                return LayerMethod()
            return method_of(self.config.method).build(self.context, self.listener.stage)

    def sample(self) -> None:
        """Sample this process's share of the tokens that the method measures on, if it measures on such."""
        if self.config.samples and self.plan.folded_layers and not self._folded:
            with self.stages("sample"):
                sample_batches(self.context, self.listener.stage, self.ranks.shard)

    @property
    def _folded(self) -> bool:
        """Whether no method is needed any more."""
        replans = self.config.measures or self.config.facts.replans
        return self.resumed == len(self.shape.layers) and not replans

    @property
    def measures(self) -> bool:
        """Whether anything is left to measure: curves, or a layer."""
        curves = self.config.measures and not (self.work.folder / SENSITIVITIES_FILE).exists()
        return curves or self.resumed < len(self.shape.layers)

    def finalize_plan(self, method: LayerMethod | None) -> None:
        """Let what the method measures decide the widths, if it may."""
        if method is None:
            return
        planned = self.plan
        with self.stages("widths"), torch.no_grad():
            if self.config.measures:
                curves = self._curves(method)
                self.plan = self._planned(curves)
            self.plan = method_of(self.config.method).replan(self.plan, method)
        if self.plan.after.layers != planned.after.layers:
            check_output_class(self.checkpoint.config, self.plan)
        if self.plan.written_as != planned.written_as:
            check_tokenizer_can_be_kept(self.checkpoint.folder, self.plan)
        if self.ranks.is_main and METHOD not in self.journal.done:
            self.journal.append(METHOD, {}, method.data_facts() if self.plan.folded_layers else self._facts)

    def _curves(self, method: LayerMethod) -> Sensitivities | None:
        path = self.work.folder / SENSITIVITIES_FILE
        if path.exists():
            return Sensitivities.load(path)
        curves = method.measure(self.context.read_layer, float(self.config.ratio or 0.0), self.listener.stage)
        if curves is not None and self.ranks.is_main:
            curves.save(path)
        return curves

    def begin(self) -> None:
        """Create the shards, and copy what lies outside the layers."""
        shards = plan_shards(self.plan.tensors, self.config.shard_bytes)
        if OUTSIDE in self._done:
            _check_shards_are_there(self.work.folder, [shard.name for shard in shards.shards])
        self.writer = ShardWriter(shards, self.work.folder)
        self.ranks.run_on_main(self.writer.create)
        if self.ranks.is_main and OUTSIDE not in self._done:
            self.listener.stage("embeddings")
            self._copy_outside()

    def confirm_piece(self, piece: Piece) -> None:
        """Raise CheckpointError if the files of a piece of a layer changed since the run began."""
        by_shard = {self.checkpoint.tensors[name].shard: name for name in self.shape.names_in(piece)}
        for name in by_shard.values():
            self.checkpoint.confirm(name)

    def write_piece(self, piece: Piece, weights: dict[Role, Tensor]) -> dict[str, str]:
        """Write the tensors of a folded piece; the digests of those that are whole with it, by name."""
        assert isinstance(self.plan.after, StockShape)
        named = self.plan.after.pack_piece(piece, weights)
        write = self.writer.write if piece.experts is None else self.writer.append
        written = {name: write(name, self._cast(tensor)) for name, tensor in named.items()}
        return {name: digest for name, digest in written.items() if digest is not None}

    def output(self) -> Output:
        """The output, of which layers can be read that are written."""
        after = self.plan.after
        assert isinstance(after, StockShape)
        return Output(self.work.folder, after.layers, partial(after.unpack, read=self.writer.read))

    def commit_layer(self, index: int, digests: dict[str, str], record: dict[str, Any]) -> None:
        """Put a layer on disk, and journal it; OutputError where a tensor of it is not whole."""
        missing = [name for name in self.shape.stored_names(index) if name not in digests]
        if missing:
            raise OutputError(f"tensor {missing[0]!r} came out with fewer experts than were planned")
        self.commit(layer_unit(index), digests, record)

    def count_layers(self) -> None:
        """Tell the listener of layers that are finished, by this process and by the others."""
        units = {*self.journal.done, *(self.journal.units_beside() if self.ranks.count > 1 else ())} - self._done
        finished = sum(unit.startswith(LAYER) for unit in units)
        for _ in range(finished - self._counted):
            self.listener.advance()
        self._counted = finished

    def finish(self, memory: PeakMemory) -> FoldRecord:
        """Check what all processes wrote, and publish it."""
        try:
            return self._finish(memory)
        except DamagedError:
            if self.ranks.is_main:
                self.work.discard()
            raise

    def _finish(self, memory: PeakMemory) -> FoldRecord:
        self.writer.close()
        if not self.ranks.is_main:
            self.journal.close()
        self.ranks.gather(None)
        digests = self.ranks.run_on_main(self._complete_folder)
        if self.ranks.is_main:
            self.count_layers()
        self.listener.stage("reload check")
        with self._checks("check"):
            verification = verify(self.work.folder, self.plan, self.checkpoint, digests, self.ranks)
        spent = self.ranks.gather((self.stages.seconds, memory.bytes))
        return self.ranks.run_on_main(lambda: self._publish(memory, spent, verification))

    def _complete_folder(self) -> dict[str, str]:
        """Write what is not tensors, and drop hidden states; digests of all tensors by name."""
        self.journal.absorb()
        folder, facts = self.work.folder, self.journal.done[METHOD].record
        shutil.rmtree(self.context.states, ignore_errors=True)
        with _writing(folder):
            self._notes = self.checkpoint.copy_side_files(folder, remote_code=self.config.trust_remote_code)
            replace_json(folder / "config.json", output_config(self.checkpoint.config, self.plan))
            keep_tokenizer(self.checkpoint.folder, folder, self.plan)
            self._notes += [*make_tokenizer_portable(folder), *source_notes(self.checkpoint.config)]
            replace_json(folder / MARKER_FILE, provenance(self.source, self.plan.to_dict(), facts, self._head))
            if self.plan.needs_remote_code:
                (folder / MODELING_FILE).write_text(modeling_source(self.plan.written_as), encoding="utf-8")
        return {name: d for entry in self.journal.done.values() for name, d in entry.digests.items()}

    def _publish(
        self, memory: PeakMemory, spent: Sequence[tuple[dict[str, float], int]], verification: dict[str, Any]
    ) -> FoldRecord:
        folder, done = self.work.folder, self.journal.done
        facts, seconds = done[METHOD].record, [seconds for seconds, _ in spent]
        if not self.config.independent:  # one process stands for all
            seconds = seconds[:1]
        report = FoldRecord(
            output=self.work.output,
            source=source_name(self.source),
            config=public_config(self.config, self.source, self.data),
            plan=self.plan.to_dict(),
            layers=[done[layer_unit(index)].record for index in range(len(self.shape.layers))],
            verification=verification,
            seconds={**mean_seconds(seconds), **self._checks.seconds},
            forward_pass_seconds=self.forward_pass,
            data=facts,
            peak_memory_bytes=max(memory.bytes, *(peak for _, peak in spent)),
            resumed_layers=self.resumed,
            machine={**machine(), "processes": self.ranks.count},
            warnings=[facts["warning"]] if facts.get("warning") else [],
            notes=[*self._notes, *([facts["note"]] if facts.get("note") else []), *self._removal_note()],
            base_card=carried_over(self.source.folder),
        )
        with _writing(folder):
            self._save(report, folder)
            if self.data not in (None, SELF_DATA):
                (folder / TOKENS_FILE).unlink(missing_ok=True)  # outside text is not ours to publish
        self.listener.stage("publish")
        self.work.publish()
        return report

    def _removal_note(self) -> list[str]:
        removed, count = self.plan.removed, len(self.whole_shape.layers)
        words = "what reads the MLP before each was refit to give what both gave"
        return [f"{removal_words(removed, count)}: {words}"] if removed else []

    def _copy_outside(self) -> None:
        inside = {name for i in range(len(self.shape.layers)) for name in self.shape.stored_names(i)}
        digests = {}
        for name in self.checkpoint.tensors:
            if name not in inside:
                with self.stages("read"):
                    tensor = self.checkpoint.read(name)
                with self.stages("write"):
                    digests[name] = self.writer.write(name, self._cast(tensor))
        with self.stages("write"):
            self.commit(OUTSIDE, digests, {})

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor if self.config.dtype == "auto" else tensor.to(getattr(torch, self.config.dtype))

    def commit(self, unit: str, digests: dict[str, str], record: dict[str, Any]) -> None:
        """Put what was written on disk, and journal it."""
        self.writer.sync()
        self.journal.append(unit, digests, record)


def _check_shards_are_there(folder: Path, names: list[str]) -> None:
    """Refuse to resume where finished tensors have gone: new, empty files would take their place."""
    gone = [name for name in names if not (folder / name).exists()]
    if gone:
        raise OutputError(f"{folder / gone[0]} of the interrupted run is gone: delete {folder} and run again")


@contextmanager
def _tidy(work: WorkFolder, journal: Journal) -> Iterator[None]:
    """Leave nothing of a run that cannot be resumed: nothing was made yet, or its source or its files are damaged."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | PeerLostError)
        kept = interrupted or not work.folder.exists() or bool(journal.units_beside())
        damaged = isinstance(error, CheckpointError) and is_damage(error)  # what was not read may be next time
        if not kept and (damaged or not _worth_keeping(work, journal, error)):
            work.discard()
        raise


def _worth_keeping(work: WorkFolder, journal: Journal, error: BaseException) -> bool:
    """Whether there are finished tensors, or hours of sampling and measuring that no bad option has brought about."""
    if journal.done.keys() - {METHOD} or (journal.done and not isinstance(error, LlmfoldError)):
        return True
    measured = any((work.folder / name).exists() for name in (TOKENS_FILE, BATCH_FOLDER, SENSITIVITIES_FILE))
    return measured and not isinstance(error, UsageError)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in a sentence why a small file could not be written into ``folder``."""
    try:
        yield
    except OSError as error:
        raise write_error(error, folder / "config.json", 0) from error
