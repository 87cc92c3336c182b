"""The numbers of an evaluation: Markdown for repositories, rich for the terminal; the dense model stands first."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmfold.evaluation.scores import Evaluation, ModelScores
from llmfold.evaluation.speed import Speed
from llmfold.evaluation.zeroshot import GROUPS, TaskScore
from llmfold.report.markdown import row
from llmfold.sizes import human_bytes

ABSENT = "–"
_SHARES = ("acc", "acc_norm")


def quality_rows(found: Evaluation) -> list[list[str]]:
    """Heading, then a row for every number: what, dense (if there is one), model."""
    heading = ["", *(_heading(found, scores) for scores in _models(found))]
    rows = [heading, *score_rows(found)]
    if found.fidelity:
        rows.append(["KL to dense, nats per token", "0", f"{found.fidelity.kl:.4f}"])
        rows.append(["top-1 agreement with dense", "100%", f"{found.fidelity.top1:.1%}"])
    return rows


def score_rows(found: Evaluation) -> list[list[str]]:
    """Rows of perplexity and tasks."""
    models = _models(found)
    rows = []
    if found.model.perplexity:
        rows.append(["perplexity", *(_perplexity(scores) for scores in models)])
    for task, metric in _metrics(models):
        rows.append([f"{task}, {metric}", *(_metric(scores.tasks.get(task), metric) for scores in models)])
    for group, tasks in GROUPS.items():
        if all(task in scores.tasks for task in tasks for scores in models):
            rows.append([f"{group}, mean acc", *(_mean(scores, tasks) for scores in models)])
    return rows


def speed_rows(found: Evaluation) -> list[list[str]]:
    """The same for speed and size; empty where they were not measured."""
    if found.speed is None:
        return []
    rows = [["", "dense", "folded", "ratio"]]
    for speed in _speeds(found):
        sides, dtype = (speed.dense, speed.model), speed.dtype
        prefill, decode = [f"{side.prefill:,.0f}" for side in sides], [f"{side.decode:,.1f}" for side in sides]
        rows.append([f"prefill, tokens per second, {dtype}", *prefill, f"{speed.prefill_ratio:.2f}"])
        rows.append([f"decode, tokens per second, {dtype}", *decode, f"{speed.decode_ratio:.2f}"])
        rows.append(_size_row(f"peak memory, {dtype}", *(side.peak_memory_bytes for side in sides)))
    rows.append(_size_row("weights on disk", found.speed.dense.disk_bytes, found.speed.model.disk_bytes))
    return rows


def _size_row(heading: str, before: int, after: int) -> list[str]:
    return [heading, human_bytes(before), human_bytes(after), f"{after / before:.2f}"]


def _speeds(found: Evaluation) -> list[Speed]:
    return [speed for speed in (found.speed, found.computed_speed) if speed]


def notes(found: Evaluation) -> list[str]:
    """How everything was measured, and what could not be."""
    lines = []
    if found.model.perplexity:
        lines.append(f"Perplexity: {found.model.perplexity.protocol}.")
    if found.model.tasks:
        dtype = f", {found.compute_dtype}" if found.compute_dtype else ""
        lines.append(
            f"Zero-shot: lm-eval {found.versions['lm-eval']}, its prompts and metrics{dtype}; ± is the standard error."
        )
        lines += [_task_note(task) for task in found.model.tasks.values()]
    if found.fidelity_protocol:
        lines.append(f"Fidelity: {found.fidelity_protocol}.")
    lines += [f"Speed: {speed.protocol}. {speed.verdict}." for speed in _speeds(found)]
    return [*lines, *(f"Not measured: {failure}." for failure in found.failures)]


def markdown_table(rows: list[list[str]]) -> str:
    """Render rows, the first of which is the heading; the first column is words, the others numbers."""
    head, *body = rows
    lines = [row(head), "|---|" + "---:|" * (len(head) - 1), *map(row, body)]
    return "\n".join(lines) + "\n"


def document(found: Evaluation) -> str:
    """The whole evaluation as Markdown."""
    tables = [markdown_table(rows) for rows in (quality_rows(found), speed_rows(found)) if len(rows) > 1]
    return "\n".join(
        [
            f"# {found.model.name}",
            "",
            *tables,
            *(f"- {note}" for note in notes(found)),
            "",
            "```",
            found.command or "",
            "```",
            "",
            ", ".join(f"{name} {number}" for name, number in found.versions.items()) + f"; {found.machine}.",
            "",
        ]
    )


def terminal(found: Evaluation) -> RenderableType:
    """The tables for a terminal."""
    parts: list[RenderableType] = []
    for rows in (quality_rows(found), speed_rows(found)):
        if len(rows) > 1:
            table = Table(box=None, padding=(0, 2), header_style="dim")
            for number, heading in enumerate(rows[0]):
                table.add_column(heading, justify="right" if number else "left")
            for row in rows[1:]:
                table.add_row(*map(Text, row))
            parts += [table, Text()]
    return Group(*parts, *(Text(note, style="dim") for note in notes(found)))


def _models(found: Evaluation) -> list[ModelScores]:
    return [scores for scores in (found.dense, found.model) if scores]


def _heading(found: Evaluation, scores: ModelScores) -> str:
    return f"dense ({scores.name})" if scores is found.dense else scores.name


def _perplexity(scores: ModelScores) -> str:
    return f"{scores.perplexity.value:.4f}" if scores.perplexity else ABSENT


def _metrics(models: list[ModelScores]) -> Iterator[tuple[str, str]]:
    """Every task with every metric of it, each once."""
    yield from dict.fromkeys(
        (name, metric) for scores in models for name, task in scores.tasks.items() for metric in task.metrics
    )


def _metric(task: TaskScore | None, metric: str) -> str:
    if task is None or metric not in task.metrics:
        return ABSENT
    value, error = task.metrics[metric]
    if metric not in _SHARES:
        return f"{value:.4f}"
    return f"{100 * value:.2f}" + (f" ± {100 * error:.2f}" if error is not None else "")


def _mean(scores: ModelScores, tasks: tuple[str, ...]) -> str:
    return f"{100 * sum(scores.tasks[task].metrics['acc'][0] for task in tasks) / len(tasks):.2f}"


def _task_note(task: TaskScore) -> str:
    return f"{task.task}: {task.documents:,} documents, {task.shots}-shot, task version {task.version}, {task.data}."
