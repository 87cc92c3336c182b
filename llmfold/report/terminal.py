"""The plan and the report as tables for a terminal."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmfold.config import FoldConfig
from llmfold.data.tokens import resolve_effort
from llmfold.models import LayerShape, ModelShape
from llmfold.pipeline.estimate import Estimate, advice
from llmfold.planning import FoldPlan
from llmfold.records.fold import PAGE_FILE, FoldRecord
from llmfold.registry import SELF_DATA
from llmfold.report.condense import stage_rows, without_empty_columns
from llmfold.report.words import check_words
from llmfold.sizes import human_bytes, human_seconds


def human_count(count: int) -> str:
    """Render a number of parameters for people: ``3.44 M``, ``6.74 B``."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _arrow(before: Any, after: Any) -> str:
    return str(before) if before == after else f"{before} → {after}"


def layer_spans(before: ModelShape, after: ModelShape) -> list[tuple[str, LayerShape, LayerShape]]:
    """Group neighbouring layers that share their widths before and after: ``("0-31", before, after)``."""
    spans: list[tuple[int, int, LayerShape, LayerShape]] = []
    for index, (a, b) in enumerate(zip(before.layers, after.layers, strict=True)):
        if spans and spans[-1][2:] == (a, b):
            spans[-1] = (spans[-1][0], index, a, b)
        else:
            spans.append((index, index, a, b))
    return [(str(i) if i == j else f"{i}-{j}", a, b) for i, j, a, b in spans]


def _saving(before: int, after: int) -> str:
    return f"{1 - after / before:.1%} less"


def plan_table(plan: FoldPlan, estimate: Estimate | None = None) -> RenderableType:
    """The plan: sizes, widths per layer, how the result loads, and what the work will cost."""
    sizes = _grid()
    sizes.add_row(
        "parameters",
        f"{human_count(plan.parameters_before)} → {human_count(plan.parameters_after)}  "
        f"({_saving(plan.parameters_before, plan.parameters_after)}; decoder layers {plan.decoder_ratio:.1%} less)",
    )
    sizes.add_row("weights", f"{human_bytes(plan.bytes_before)} → {human_bytes(plan.bytes_after)}")
    sizes.add_row("method", describe_method(plan))
    if plan.config.uses("num_samples"):
        sizes.add_row("measured on", _measured_on(resolve_effort(plan.config, plan.before)))
    sizes.add_row("loads as", f"{plan.written_as.causal_lm}{_loading_note(plan)}")
    if estimate is not None:
        sizes.add_row(
            "expect",
            f"{human_bytes(estimate.memory_bytes)} of memory, {human_bytes(estimate.disk_bytes)} of disk, "
            f"about {human_seconds(estimate.seconds)}",
        )
        sizes.add_row("", _stage_table(estimate.stages, estimate.forward_pass_seconds))
        if estimate.efforts:
            sizes.add_row("effort", _efforts(estimate.efforts, plan.config.effort))
        hint = advice(plan, estimate.seconds)
        if hint:
            sizes.add_row("", hint)
    if plan.config.measures and estimate is not None:
        sizes.add_row("widths", "preliminary: where to remove what is measured before folding")
    widths = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("layers", "MLP neurons", "query heads", "KV heads"):
        widths.add_column(heading, justify="right")
    for span, a, b in layer_spans(plan.before, plan.after):
        widths.add_row(
            span, _arrow(a.intermediate, b.intermediate), _arrow(a.heads, b.heads), _arrow(a.kv_heads, b.kv_heads)
        )
    return Group(sizes, Text(), widths)


def _stage_table(seconds: Mapping[str, float], forward_pass: float | None) -> Table:
    head, *body = without_empty_columns(stage_rows(seconds, forward_pass))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    return table


def _efforts(seconds: Mapping[str, float], chosen: str) -> str:
    """``quick 4 min, normal 18 min (this one), best 70 min``."""
    parts = (f"{name} {human_seconds(spent)}{' (this one)' * (name == chosen)}" for name, spent in seconds.items())
    return ", ".join(parts)


def _measured_on(config: FoldConfig) -> str:
    refined = f", {config.refine} steps of refinement" if config.refine is not None else ""
    return f"{config.num_samples} sequences of {config.sequence_length} tokens{refined}"


def describe_method(plan: FoldPlan) -> str:
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


def _clusters(part: dict[str, Any] | None) -> Sequence[str]:
    if part is None:
        return ("", "", "", "")
    widths = f"{part['before']} → {part['after']}"
    if "cluster_sizes" not in part:
        return (widths, "", "", "")
    sizes = {int(size): count for size, count in part["cluster_sizes"].items()}
    merged = sum(count for size, count in sizes.items() if size > 1)
    bound = part["inertia_bound"]
    ratio = f"{part['inertia'] / bound:.2f}" if bound else "–"
    return (widths, str(merged), str(max(sizes)), ratio)


def _repair(part: dict[str, Any] | None) -> Sequence[str]:
    if part is None:
        return ("", "", "", "")
    before = part["error_before_repair"]
    return (
        f"{part['before']} → {part['after']}",
        f"{part['ridge']:g}",
        "–" if before is None else f"{before:.3f}",
        f"{part['error_after_repair']:.3f}",
    )


def _layer_table(report: FoldRecord) -> Table:
    parts = [part for record in report.layers for part in (record.get("mlp"), record.get("attention")) if part]
    repaired = any("ridge" in part for part in parts)
    own = ("ridge", "error", "after") if repaired else ("merged", "largest", "inertia\n/ bound")
    heading = ("layer", "MLP", *own, "heads", *own[: 3 if repaired else 2])
    cells = _repair if repaired else _clusters
    rows = [
        (str(index), *cells(record.get("mlp")), *cells(record.get("attention")))[: len(heading)]
        for index, record in enumerate(report.layers)
    ]
    head, *body = without_empty_columns([heading, *rows])
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in head:
        table.add_column(name, justify="right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    return table


def report_table(report: FoldRecord) -> RenderableType:
    """The report: what became of every layer, what was checked and where the time went, and the two models compared.

    Errors are relative squared errors of what a layer should add to the residual stream, on tokens held back: with the
    consumer as it was, and after its repair.
    """
    run = _grid()
    run.add_row("reload check", check_words(report.verification))
    for warning in report.warnings:
        run.add_row("warning", warning)
    for note in report.notes:
        run.add_row("note", note)
    run.add_row("peak memory", human_bytes(report.peak_memory_bytes))
    run.add_row("time", _stage_table(report.seconds, report.forward_pass_seconds))
    where = _grid()
    where.add_row("output", str(report.output))
    where.add_row("report", str(report.output / PAGE_FILE))
    return Group(_layer_table(report), Text(), run, Text(), _beside(report), Text(), where)


def _beside(report: FoldRecord) -> Table:
    """The dense model and the folded one side by side: size, closeness, and one prompt as both continue it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(style="dim", overflow="fold")
    for name in ("dense", "folded"):
        table.add_column(name, overflow="fold")
    before, after = report.parameters_before, report.parameters_after
    table.add_row("parameters", f"{before:,}", f"{after:,}  ({_saving(before, after)})")
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


class _Patient(Console):
    """A console that goes silent when its reader has gone, instead of stopping the work."""

    def on_broken_pipe(self) -> None:
        """Send whatever else is printed nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_table(table: RenderableType) -> None:
    """Print to standard output, and flush."""
    _Patient(highlight=False).print(table)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
