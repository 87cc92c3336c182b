"""The engine: one decoder layer at a time from the source's shards, through folding, into the output's shards."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from llmfold.config import FoldConfig
from llmfold.errors import UsageError
from llmfold.methods.base import LayerMethod, Output
from llmfold.models.pieces import Piece
from llmfold.pipeline.estimate import check_machine
from llmfold.pipeline.layer_writer import LayerWriter
from llmfold.pipeline.progress import Listener
from llmfold.pipeline.run import Run
from llmfold.pipeline.sharing import reuse_measurements
from llmfold.planning import FoldPlan
from llmfold.records.fold import FoldRecord
from llmfold.records.saved import Save, save_record
from llmfold.runtime.distributed import Ranks, check_alike, join_ranks
from llmfold.runtime.launch import local_world_size
from llmfold.runtime.memory import PeakMemory, return_freed_blocks
from llmfold.runtime.oom import explain_oom
from llmfold.runtime.prefetch import ReadAhead
from llmfold.runtime.timing import StageTimer


def fold_together(
    configs: Sequence[FoldConfig],
    listener: Listener | None = None,
    save: Save = save_record,
    reuse_from: Path | None = None,
) -> list[FoldRecord]:
    """Fold a checkpoint by configs that differ in ratio and output only, in one pass over its layers.

    Memory is bounded by one decoder layer and the clustering's work area. An output has the bytes of a run of its own,
    and appears in one rename after it has been reloaded and checked; a killed run resumes at the last whole layer. Of
    several world_size processes each folds its share of the layers where the method allows it. A method that carries
    something from layer to layer takes one config.

    Args:
        configs: at least one.
        listener: hears of the stages.
        save: writes the record of a fold into its output, before that is published.
        reuse_from: a finished output of another ratio, no smaller: what it measured on the dense model is used again.

    Raises:
        LlmfoldError: bad options, a damaged or unsupported source, an output that cannot be written, or a result that
            does not reload to what was produced. Nothing is left at its output path; outputs published before stay.
    """
    return_freed_blocks()
    ranks = join_ranks()
    check_alike(ranks, torch.get_num_threads())
    with explain_oom(), PeakMemory() as memory, ExitStack() as stack:
        stages = StageTimer()
        runs = [Run(config, listener or Listener(), ranks, stages, save) for config in configs]
        ranks.run_on_main(partial(_check_resources, runs))
        runs[0].listener.opened(len(runs[0].whole_shape.layers))
        for run in runs:
            run.open(stack)
            if reuse_from is not None:
                ranks.run_on_main(partial(reuse_measurements, run.work.folder, reuse_from, run.shape, run.config))
        method = _prepare(runs, ranks)
        for run in runs:
            run.listener.start(run.plan, runs[0].resumed)
        for run in runs:
            run.begin()
        _fold_layers(runs, method, ranks)
        return [run.finish(memory) for run in runs]


def _check_resources(runs: Sequence[Run]) -> None:
    """Refuse, before anything is done, what the processes cannot do or this machine's disk or memory cannot hold."""
    config, count = runs[0].config, runs[0].ranks.count
    if config.together and local_world_size() < count:
        raise UsageError(
            f"--method {config.method} shares hidden states between its processes, which one machine must hold, but "
            f"{count} were started on several; start them all on one, or use --method paper"
        )
    check_machine([run.plan for run in runs], on_host=runs[0].device.type == "cpu", processes=local_world_size())


def _prepare(runs: Sequence[Run], ranks: Ranks) -> LayerMethod | None:
    """The method, on the processes that will fold by it; the widths it has settled on, on all of them."""
    first = runs[0]
    method: LayerMethod | None = None

    def build() -> LayerMethod | None:
        """Of several ratios one may fold nothing: its method folds no other."""
        built = [run.build_method() for run in sorted(runs, key=lambda run: not run.plan.folded_layers)]
        return next((method for method in built if method is not None), None)

    def build_on_main() -> list[FoldPlan]:
        nonlocal method
        method = build()
        for run in runs:
            run.finalize_plan(method)
        return [run.plan for run in runs]

    first.time_forward_pass()
    for run in runs:
        run.forward_pass = first.forward_pass
        run.settle_depth()
        ranks.run_on_all(run.sample)
    if not first.config.independent:
        for run, plan in zip(runs, ranks.run_on_main(build_on_main), strict=True):
            run.plan = plan
        return method
    method = ranks.run_main_first(build)
    if method is not None and first.config.facts.weighs and any(run.measures for run in runs):
        with first.stages("importance"), torch.no_grad():
            method.ready(first.context.read_layer, first.listener.stage)
    for run in runs:
        run.finalize_plan(method)
    return method


def _fold_layers(runs: Sequence[Run], method: LayerMethod | None, ranks: Ranks) -> None:
    """Fold what is left of the layers for every run, a layer at a time."""
    first, count = runs[0], len(runs[0].shape.layers)
    pending = {i: missing for i in range(count) if (missing := [run for run in runs if not run.is_done(i)])}
    if method is None or not pending:
        return
    outputs = {run: run.output() for run in runs}
    method.start(min(pending), list(outputs.values()))
    groups = list(method.groups(sorted(pending)))
    shares = [ranks.shard(group) if first.config.independent else group for group in groups]
    context, apart = first.context, first.config.facts.by_pieces
    pieces = {i: first.shape.pieces(i) if apart else [Piece(i)] for i in chain(*shares)}
    on_gpu = first.device.type == "cuda"
    with ExitStack() as stack:
        order = list(chain(*pieces.values()))
        ahead = stack.enter_context(ReadAhead(context.read_piece, first.confirm_piece, order, pin=on_gpu))
        writer = LayerWriter(runs, method, stack)
        for group, share in zip(groups, shares, strict=True):
            first.listener.stage(f"layer {group[0]}: forward")
            with first.stages("forward"), torch.no_grad():
                method.prepare(group, context.read_layer)
            for index in share:
                into = {run: outputs[run] for run in pending[index]}
                for piece in pieces[index]:
                    _fold_piece(piece, piece == pieces[index][-1], into, method, ahead, writer)
                if method.reads_back:
                    writer.wait_copied()
                with first.stages("forward"), torch.no_grad():
                    method.on_committed()
        writer.wait_committed()


def _fold_piece(
    piece: Piece,
    last: bool,
    outputs: Mapping[Run, Output],
    method: LayerMethod,
    ahead: ReadAhead[Piece],
    writer: LayerWriter,
) -> None:
    """Fold a layer, or a piece of it, for every run; what is read and made here is held no longer than this."""
    first, index = next(iter(outputs)), piece.layer
    first.listener.stage(f"layer {index}: read")
    with first.stages("read"):
        weights = ahead.take(piece)
    if first.device.type != "cuda":
        writer.wait_copied()  # memory is for the work area now
    first.listener.stage(f"layer {index}: fold")
    with torch.no_grad():
        results = method.fold_into(piece, weights, first.shape.layers[index], list(outputs.values()))
        for run, (folded, record) in zip(outputs, results, strict=True):
            writer.put(run, piece, folded, record, last=last)
