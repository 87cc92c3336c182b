"""The numbers of an evaluation of an image model: Markdown for repositories, rich for the terminal; dense first."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from llmfold.evaluation.image_scores import ImageEvaluation, ImageScores, Share
from llmfold.report.console import rich_table
from llmfold.report.rendering import render
from llmfold.report.rows import ABSENT
from llmfold.report.words import sentence_case


def rows(evaluation: ImageEvaluation) -> list[list[str]]:
    """Heading, then a row for every number: what, dense (if there is one), model."""
    models = [scores for scores in (evaluation.dense, evaluation.model) if scores]
    names = [f"dense ({evaluation.dense_name})"] if evaluation.dense else []

    def row(what: str, cell: Callable[[ImageScores], str]) -> list[str]:
        return [what, *map(cell, models)]

    found = [["", *names, evaluation.name]]
    if evaluation.model.top1:
        found.append(row("top-1 accuracy, %", lambda scores: percent(scores.top1)))
    if evaluation.model.top5:
        found.append(row("top-5 accuracy, %", lambda scores: percent(scores.top5)))
    close = evaluation.closeness
    if close and close.difference:
        found.append(["difference of top-1, points", "0", percent(close.difference, "+.2f")])
    if close and close.agreement is not None and close.kl is not None:
        found.append(["same class as dense", "100%", f"{close.agreement:.1%}"])
        found.append(["KL to dense, nats per image", "0", f"{close.kl:.4f}"])
    if close and close.cosine is not None:
        found.append(["cosine with dense embeddings", "1", f"{close.cosine:.4f}"])
    found.append(row("parameters", lambda scores: f"{scores.parameters:,}"))
    found.append(row("multiplications per image", lambda scores: f"{scores.multiplications:,}"))
    return found


def percent(share: Share | None, form: str = ".2f") -> str:
    """``91.20 ± 1.43``."""
    return ABSENT if share is None else f"{100 * share.value:{form}} ± {100 * share.margin:.2f}"


def notes(evaluation: ImageEvaluation) -> list[str]:
    """How everything was measured, a sentence each."""
    return [f"{sentence_case(words)}." for words in evaluation.protocol]


def document(evaluation: ImageEvaluation) -> str:
    """The whole evaluation as Markdown."""
    return render(
        "evaluation.md",
        name=evaluation.name,
        evaluation=evaluation,
        tables=[rows(evaluation)],
        notes=notes(evaluation),
    )


def terminal(evaluation: ImageEvaluation) -> RenderableType:
    """The table for a terminal."""
    lines = (Text(note, style="dim") for note in notes(evaluation))
    return Group(rich_table(rows(evaluation), no_wrap=False), Text(), *lines)
