"""The numbers of an evaluation: Markdown for repositories, rich for the terminal; the dense model stands first."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from llmfold.evaluation.engine_speed import EngineSpeed
from llmfold.evaluation.scores import Evaluation, ModelScores
from llmfold.evaluation.speed import MANY, Speed
from llmfold.evaluation.zeroshot import GROUPS, TaskScore
from llmfold.report.console import rich_table
from llmfold.report.rendering import render
from llmfold.report.rows import ABSENT
from llmfold.sizes import human_bytes

_SHARES = ("acc", "acc_norm")


def quality_rows(evaluation: Evaluation) -> list[list[str]]:
    """Heading, then a row for every number: what, dense (if there is one), model."""
    heading = ["", *(_heading(evaluation, scores) for scores in _models(evaluation))]
    rows = [heading, *score_rows(evaluation)]
    if evaluation.fidelity:
        rows.append(["KL to dense, nats per token", "0", f"{evaluation.fidelity.kl:.4f}"])
        rows.append(["top-1 agreement with dense", "100%", f"{evaluation.fidelity.top1:.1%}"])
    return rows


def score_rows(evaluation: Evaluation) -> list[list[str]]:
    """Rows of perplexity and tasks."""
    models = _models(evaluation)
    rows = []
    if evaluation.model.perplexity:
        rows.append(["perplexity", *(_perplexity(scores) for scores in models)])
    for task, metric in _metrics(models):
        rows.append([f"{task}, {metric}", *(_metric(scores.tasks.get(task), metric) for scores in models)])
    for group, tasks in GROUPS.items():
        if all(task in scores.tasks for task in tasks for scores in models):
            rows.append([f"{group}, mean acc", *(_mean(scores, tasks) for scores in models)])
    return rows


def speed_rows(evaluation: Evaluation) -> list[list[str]]:
    """The same for speed and size; empty where they were not measured."""
    if evaluation.speed is None:
        return []
    rows = [["", "dense", "folded", "ratio"]]
    for speed in _speeds(evaluation):
        sides, dtype = (speed.dense, speed.model), speed.dtype
        prefill, decode = [f"{side.prefill:,.0f}" for side in sides], [f"{side.decode:,.1f}" for side in sides]
        rows.append([f"prefill, tokens per second, {dtype}", *prefill, f"{speed.prefill_ratio:.2f}"])
        rows.append([f"decode, tokens per second, {dtype}", *decode, f"{speed.decode_ratio:.2f}"])
        rows += _many_rows(speed)
        rows.append(_size_row(f"peak memory, {dtype}", *(side.peak_memory_bytes for side in sides)))
    rows += _llama_cpp_rows(evaluation.llama_cpp)
    rows.append(_size_row("weights on disk", evaluation.speed.dense.disk_bytes, evaluation.speed.model.disk_bytes))
    return rows


def _many_rows(speed: Speed) -> Iterator[list[str]]:
    """Speeds of several sequences at once, and the time to load; earlier versions did not measure them."""
    for what in ("prefill", "decode"):
        sides = [getattr(side, f"many_{what}") for side in (speed.dense, speed.model)]
        ratio = getattr(speed, f"many_{what}_ratio")
        if None not in (*sides, ratio):
            heading = f"{what}, {MANY} sequences at once, {speed.dtype}"
            yield [heading, *(f"{side:,.0f}" for side in sides), f"{ratio:.2f}"]
    before, after = speed.dense.load_seconds, speed.model.load_seconds
    if before and after:
        yield [f"seconds to load, {speed.dtype}", f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}"]


def _llama_cpp_rows(speed: EngineSpeed | None) -> Iterator[list[str]]:
    """The same in llama.cpp, where that was measured."""
    if speed is None or speed.model is None or speed.dense is None:
        return
    for what in ("prefill", "decode"):
        sides, ratio = [getattr(side, what) for side in (speed.dense, speed.model)], getattr(speed, f"{what}_ratio")
        yield [
            f"llama.cpp: {what}, tokens per second, {speed.dtype}",
            *(f"{side:,.0f}" for side in sides),
            f"{ratio:.2f}",
        ]
    before, after = speed.dense.load_seconds, speed.model.load_seconds
    yield ["llama.cpp: seconds to load", f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}"]
    yield _size_row("llama.cpp: file", speed.dense.file_bytes, speed.model.file_bytes)


def _size_row(heading: str, before: int, after: int) -> list[str]:
    return [heading, human_bytes(before), human_bytes(after), f"{after / before:.2f}"]


def _speeds(evaluation: Evaluation) -> list[Speed]:
    return [speed for speed in (evaluation.speed, evaluation.computed_speed) if speed]


def notes(evaluation: Evaluation) -> list[str]:
    """How everything was measured, and what could not be."""
    lines = []
    if evaluation.model.perplexity:
        lines.append(f"Perplexity: {evaluation.model.perplexity.protocol}.")
    if evaluation.model.tasks:
        dtype = f", {evaluation.compute_dtype}" if evaluation.compute_dtype else ""
        harness = f"lm-eval {evaluation.versions['lm-eval']}"
        lines.append(f"Zero-shot: {harness}, its prompts and metrics{dtype}; ± is the standard error.")
        lines += [_task_note(task) for task in evaluation.model.tasks.values()]
    if evaluation.fidelity_protocol:
        lines.append(f"Fidelity: {evaluation.fidelity_protocol}.")
    lines += [f"Speed: {speed.protocol}. {speed.verdict}." for speed in _speeds(evaluation)]
    if evaluation.llama_cpp:
        lines.append(f"llama.cpp: {evaluation.llama_cpp.protocol}.")
    if evaluation.speed:
        lines.append(f"Timed on {evaluation.machine}.")
    return [*lines, *(f"Not measured: {failure}." for failure in evaluation.failures)]


def document(evaluation: Evaluation) -> str:
    """The whole evaluation as Markdown."""
    return render(
        "evaluation.md",
        name=evaluation.model.name,
        evaluation=evaluation,
        tables=_tables(evaluation),
        notes=notes(evaluation),
    )


def terminal(evaluation: Evaluation) -> RenderableType:
    """The tables for a terminal."""
    parts: list[RenderableType] = []
    for rows in _tables(evaluation):
        parts += [rich_table(rows, no_wrap=False), Text()]
    return Group(*parts, *(Text(note, style="dim") for note in notes(evaluation)))


def _tables(evaluation: Evaluation) -> list[list[list[str]]]:
    return [rows for rows in (quality_rows(evaluation), speed_rows(evaluation)) if len(rows) > 1]


def _models(evaluation: Evaluation) -> list[ModelScores]:
    return [scores for scores in (evaluation.dense, evaluation.model) if scores]


def _heading(evaluation: Evaluation, scores: ModelScores) -> str:
    return f"dense ({scores.name})" if scores is evaluation.dense else scores.name


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
