"""Rows of a comparison of image models, its tables and its pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from llmfold.experiments.chart import lines_of
from llmfold.experiments.results import AnyRow, AnyRun, Spread
from llmfold.experiments.table import DEVIATIONS, Columns, Page, Section, mean, page_of, spread, terminal_of
from llmfold.report.plot import Bar, Point, Series, bar_chart, line_chart
from llmfold.report.rows import ABSENT
from llmfold.report.words import sentence_case

CHART_FILES = {"compare.svg": ("parameters", "removed"), "compare-multiplications.svg": ("multiplications", "saved")}
"""Pictures by file: what they are drawn against, in words and as a number of a row."""
_QUALITIES = {"accuracy": "top-1 accuracy", "agreement": "same class as dense", "cosine": "cosine with dense"}
"""What is drawn, the first that was measured."""


@dataclass(frozen=True)
class ImageRun(AnyRun):
    """One fold of an image model.

    Attributes:
        accuracy: share of images whose class has the highest score; None where images have no classes.
        margin: half width of its 95 % interval.
        top5: share of images whose class is among the five highest; None where there are no more.
        difference: of accuracy, from the dense model's.
        agreement: share of images where both find the same class most likely; None for models without classes.
        kl: KL(dense || folded) in nats per image; likewise.
        cosine: of embeddings with the dense model's; None for classifiers.
        parameters: of the folded model.
        removed: fraction of all parameters that went.
        multiplications: for one image.
        saved: fraction of the dense model's that went.
        seconds: of the fold, without its reload check and the inversion of images.
    """

    accuracy: float | None = None
    margin: float | None = None
    top5: float | None = None
    difference: float | None = None
    agreement: float | None = None
    kl: float | None = None
    cosine: float | None = None
    parameters: int = 0
    removed: float = 0.0
    multiplications: int = 0
    saved: float = 0.0
    seconds: float = 0.0

    @property
    def quality(self) -> tuple[str, float]:
        """What was measured, in words, and its value."""
        return next((words, value) for name, words in _QUALITIES.items() if (value := getattr(self, name)) is not None)


@dataclass(frozen=True)
class ImageRow(AnyRow):
    """Of an image model."""

    accuracy: Spread | None = None
    margin: Spread | None = None
    top5: Spread | None = None
    difference: Spread | None = None
    agreement: Spread | None = None
    kl: Spread | None = None
    cosine: Spread | None = None
    parameters: Spread | None = None
    removed: Spread | None = None
    multiplications: Spread | None = None
    saved: Spread | None = None
    seconds: Spread | None = None


def _share(value: float) -> str:
    return f"{100 * value:.2f}"


_COLUMNS: Columns[ImageRow] = {
    "method": lambda row: row.method,
    "data used": lambda row: row.data or ABSENT,
    "top-1, %": lambda row: spread(row.accuracy, _share),
    "half of 95 %": lambda row: mean(row.margin, _share),
    "top-5, %": lambda row: spread(row.top5, _share),
    "from dense": lambda row: mean(row.difference, lambda value: f"{100 * value:+.2f}"),
    "agreement": lambda row: mean(row.agreement, "{:.1%}".format),
    "KL to dense": lambda row: spread(row.kl, "{:.3f}".format),
    "cosine": lambda row: spread(row.cosine, "{:.4f}".format),
    "parameters": lambda row: mean(row.parameters, "{:,.0f}".format),
    "removed": lambda row: mean(row.removed, "{:.1%}".format),
    "multiplications": lambda row: mean(row.multiplications, "{:,.0f}".format),
    "saved": lambda row: mean(row.saved, "{:.1%}".format),
    "seconds": lambda row: mean(row.seconds, "{:.1f}".format),
    "seeds": lambda row: str(row.seeds or ABSENT),
}
_SHORT = {
    **{"method": "method", "top-1, %": "top-1, %", "agreement": "same", "KL to dense": "KL", "cosine": "cosine"},
    **{"removed": "removed", "saved": "saved"},
}
"""Columns that 80 letters have room for, and their headings there."""


def document(
    facts: Mapping[str, Any], protocol: Sequence[str], sections: Sequence[Section[ImageRow]], pictures: Sequence[str]
) -> Page:
    """The page of a comparison of image models.

    Args:
        facts: model, command, versions and machine, as in compare.json.
        protocol: how models were measured, sentences without full stops.
        sections: one table for every ratio.
        pictures: file names of charts.
    """
    notes = [f"{sentence_case(words)}." for words in protocol]
    notes += [DEVIATIONS, "Seconds: of the fold, without its reload check, and without inverting images once a seed."]
    return page_of(facts, sections, _filled(_COLUMNS, sections), notes, pictures)


def terminal(section: Section[ImageRow]) -> RenderableType:
    """A table for a terminal."""
    return terminal_of(section, _filled({short: _COLUMNS[name] for name, short in _SHORT.items()}, [section]))


def _filled(columns: Columns[ImageRow], sections: Sequence[Section[ImageRow]]) -> Columns[ImageRow]:
    """Columns in which any row has something."""
    rows = [row for section in sections for row in section.rows]
    return {name: cell for name, cell in columns.items() if any(cell(row) != ABSENT for row in rows)}


def charts(model: str, images: str, dense: ImageRow, rows: Sequence[ImageRow]) -> dict[str, str | None]:
    """Pictures by file name: quality against what is removed; None where nothing was measured.

    Args:
        model: its name.
        images: name of the images.
        dense: row of the dense model.
        rows: of all ratios.
    """
    quality = next(name for name in _QUALITIES if getattr(dense, name) is not None)
    drawn = [row for row in rows if getattr(row, quality) is not None]
    return {file: _chart(model, images, dense, drawn, quality, *what) for file, what in CHART_FILES.items()}


def _chart(
    model: str, images: str, dense: ImageRow, rows: list[ImageRow], quality: str, words: str, against: str
) -> str | None:
    if not rows:
        return None

    def number(name: str) -> Callable[[ImageRow], Spread]:
        return lambda row: getattr(row, name)

    x, y = number(against), number(quality)
    seeds = max(row.seeds for row in rows)
    subtitle = f"on {images}, higher is better" + (f", mean and spread of {seeds} seeds" if seeds > 1 else "")
    label = f"{_QUALITIES[quality]}, %"
    if len({tuple(row.amount.items()) for row in rows}) > 1:
        lines = lines_of(rows, lambda row: -y(row).mean)
        return line_chart(
            [Series(name, _points(line, x, y)) for name, line in lines.items()],
            title=f"{model}: {_QUALITIES[quality]} against {words} removed",
            subtitle=subtitle,
            x_label=f"fraction of {words} removed",
            y_label=label,
            level=("dense", 100 * y(dense).mean),
        )
    best_first = sorted(rows, key=lambda row: -y(row).mean)
    return bar_chart(
        [Bar(r.method, 100 * y(r).mean, 100 * y(r).deviation, f"{x(r).mean:.1%} removed") for r in best_first],
        title=f"{model}: {_QUALITIES[quality]}, and {words} removed",
        subtitle=f"{subtitle}; dense {100 * y(dense).mean:.2f}",
        x_label=label,
    )


def _points(rows: Sequence[ImageRow], x: Callable[[ImageRow], Spread], y: Callable[[ImageRow], Spread]) -> list[Point]:
    points = [Point(x(row).mean, 100 * y(row).mean, 100 * y(row).deviation) for row in rows]
    return sorted(points, key=lambda point: point.x)
