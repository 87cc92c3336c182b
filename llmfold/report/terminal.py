"""The plan and the report as tables for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmfold.config import FoldConfig
from llmfold.data.tokens import resolve_effort
from llmfold.engines import doctor
from llmfold.errors import CheckpointError
from llmfold.pipeline.estimate import Estimate, advice
from llmfold.planning import FoldPlan
from llmfold.planning.depth import removal_words
from llmfold.records.fold import PAGE_FILE, FoldRecord
from llmfold.registry import SELF_DATA
from llmfold.report.console import rich_table
from llmfold.report.engine_table import engine_line
from llmfold.report.rows import PartRow, part_rows, stage_rows, width_rows, without_empty_columns
from llmfold.report.words import check_words
from llmfold.sizes import human_bytes, human_count, human_seconds


def facts(*rows: tuple[str, RenderableType]) -> Table:
    """Names, each with what it names."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def saving(before: int, after: int) -> str:
    """``12.5% less``."""
    return f"{1 - after / before:.1%} less"


def plan_table(plan: FoldPlan, estimate: Estimate | None = None) -> RenderableType:
    """The plan: sizes, widths per layer, how the result loads, and what the work will cost."""
    config = plan.config
    less = f"{saving(plan.parameters_before, plan.parameters_after)}; decoder layers {plan.decoder_ratio:.1%} less"
    rows: list[tuple[str, RenderableType]] = [
        ("parameters", f"{human_count(plan.parameters_before)} → {human_count(plan.parameters_after)}  ({less})"),
        ("weights", f"{human_bytes(plan.bytes_before)} → {human_bytes(plan.bytes_after)}"),
        ("method", _method(plan)),
    ]
    if config.uses("num_samples"):
        rows.append(("measured on", _measured_on(resolve_effort(config, plan.before))))
    if config.removes_blocks:
        rows.append(("blocks", _blocks(plan, chosen=estimate is None)))
    rows.append(("loads as", f"{plan.written_as.causal_lm}{_loading_note(plan)}"))
    if plan.before.inferred:
        rows.append(("couplings", plan.before.inferred))
    if estimate is not None:
        memory, disk = human_bytes(estimate.memory_bytes), human_bytes(estimate.disk_bytes)
        rows.append(("expect", f"{memory} of memory, {disk} of disk, about {human_seconds(estimate.seconds)}"))
        rows.append(("", stage_table(estimate.stages, estimate.forward_pass_seconds)))
        if estimate.efforts:
            rows.append(("effort", _efforts(estimate.efforts, config.effort)))
        hint = advice(plan, estimate.seconds)
        if hint:
            rows.append(("", hint))
        if config.measures:
            rows.append(("widths", "preliminary: where to remove what is measured before folding"))
    return Group(facts(*rows), Text(), rich_table(width_rows(plan.to_dict()["layers"], "-"), words=0, no_wrap=False))


def _blocks(plan: FoldPlan, *, chosen: bool) -> str:
    """Which blocks go as a whole, or that it will be measured."""
    count = len(plan.whole.layers)
    if chosen:
        return removal_words(plan.removed, count) if plan.removed else f"all {count} stay"
    if plan.removed:
        return f"{len(plan.removed)} of {count} go as a whole: which, is measured before folding"
    return f"as many of {count} as lose least, if any: measured before folding"


def stage_table(seconds: Mapping[str, float], forward_pass: float | None) -> Table:
    """Seconds by stage, and forward passes where one was timed."""
    return rich_table(without_empty_columns(stage_rows(seconds, forward_pass)), padding=(0, 2, 0, 0))


def _efforts(seconds: Mapping[str, float], chosen: str) -> str:
    """``quick 4 min, normal 18 min (this one), best 70 min``."""
    parts = (f"{name} {human_seconds(spent)}{' (this one)' * (name == chosen)}" for name, spent in seconds.items())
    return ", ".join(parts)


def _measured_on(config: FoldConfig) -> str:
    refined = f", {config.refine} steps of refinement" if config.refine is not None else ""
    return f"{config.num_samples} sequences of {config.sequence_length} tokens{refined}"


def _method(plan: FoldPlan) -> str:
    """One line that names the method and what it used."""
    config = plan.config
    parts = [config.method]
    if config.method == "paper":
        parts += [f"{config.cluster} clusters", f"align {config.alignment}"]
        if config.repair != "none":
            parts.append(f"{config.repair} repair")
    if config.method == "flap":
        parts.append("which divides the budget among layers once it has measured them")
    return ", ".join([*parts, _data(config)])


def _data(config: FoldConfig) -> str:
    if SELF_DATA in (config.method, config.data):
        return "tokens sampled from the model itself"
    return f"outside text: {Path(config.data).name}" if config.data else "no data"


def _loading_note(plan: FoldPlan) -> str:
    if plan.needs_remote_code:
        reason = f"{plan.written_as.prefix}Config refuses the heads" if plan.after.uniform else "layers differ in width"
        return f" with its own modelling file (trust_remote_code=True), since {reason}"
    if plan.written_as != plan.before.architecture:
        return f", since {plan.before.architecture.prefix}Config refuses {plan.after.layers[0].heads} heads"
    return ""


def _layer_table(report: FoldRecord) -> Table:
    pairs = part_rows(report.layers)
    repaired = any(row.repair for pair in pairs for row in pair if row)
    heading = ["ridge", "error", "after"] if repaired else ["merged", "largest", "inertia\n/ bound"]

    def cells(row: PartRow | None) -> Sequence[str]:
        if row is None:
            return ("", "", "", "")
        return (row.widths, *(map(str, (row.repair if repaired else row.clusters) or ("", "", ""))))

    columns = 9 if repaired else 8  # the inertia of heads has no room
    rows = [["layer", "MLP", *heading, "heads", *heading]]
    rows += [[str(index), *cells(mlp), *cells(heads)] for index, (mlp, heads) in enumerate(pairs)]
    return rich_table(without_empty_columns([row[:columns] for row in rows]), words=0, padding=(0, 1))


def report_table(report: FoldRecord) -> RenderableType:
    """The report: what became of every layer, what was checked and where the time went, and the two models compared.

    Errors are relative squared errors of what a layer should add to the residual stream, on tokens held back: with the
    consumer as it was, and after its repair.
    """
    run = facts(
        ("reload check", check_words(report.verification)),
        *(("warning", warning) for warning in report.warnings),
        *(("note", note) for note in report.notes),
        ("peak memory", human_bytes(report.peak_memory_bytes)),
        ("time", stage_table(report.seconds, report.forward_pass_seconds)),
    )
    engines = facts(*_engine_rows(report.output))
    where = facts(("output", str(report.output)), ("report", str(report.output / PAGE_FILE)))
    return Group(_layer_table(report), Text(), run, Text(), _beside(report), Text(), engines, where)


def _engine_rows(folder: Path) -> list[tuple[str, str]]:
    """Which engines load a folder, in a line; none where it has gone."""
    try:
        return [("engines", engine_line(doctor(folder)))]
    except CheckpointError:
        return []


def _beside(report: FoldRecord) -> Table:
    """The dense model and the folded one side by side: size, closeness, and one prompt as both continue it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(style="dim", overflow="fold")
    for name in ("dense", "folded"):
        table.add_column(name, overflow="fold")
    before, after = report.parameters_before, report.parameters_after
    table.add_row("parameters", f"{before:,}", f"{after:,}  ({saving(before, after)})")
    sizes = report.plan["bytes"]
    table.add_row("weights", human_bytes(sizes["before"]), human_bytes(sizes["after"]))
    close = report.quality.get("fidelity")
    if close:
        table.add_row("same next token", "", f"{close['top1']:.1%} of {close['tokens']:,} that the dense model wrote")
        table.add_row("KL to dense", "", f"{close['kl']:.3f} nats per token")
    for sample in report.quality.get("samples", ())[:1]:
        texts = (Text(" ".join(sample[side].split())) for side in ("dense", "model"))
        table.add_row(Text(sample["prompt"]), *texts)
    return table
