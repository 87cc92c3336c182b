"""report.html: one page without scripts or outside resources, readable on a phone, light or dark by preference."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmfold.evaluation.scores import Evaluation
from llmfold.records.fold import is_of_image
from llmfold.report import images
from llmfold.report.plot import Bar, Point, Series, bar_chart, line_chart, plain
from llmfold.report.rendering import render
from llmfold.report.rows import ABSENT, PartRow, main_stages, part_rows, stage_rows
from llmfold.report.scoreboard import notes, quality_rows, speed_rows
from llmfold.report.words import check_words, data_words, fold_command, method_words
from llmfold.sizes import human_bytes, human_count, human_seconds

Layers = Sequence[Mapping[str, Any]]
_PART_HEADING = ("kept by", "error", "after repair")
_MOST_BARS = 12


def page(report: Mapping[str, Any]) -> str:
    """Render the page.

    Args:
        report: content of report.json.
    """
    if is_of_image(report["plan"]):
        return images.page(report)
    quality = Evaluation.from_dict(report["quality"]) if report["quality"] else None
    method, layers, seconds = report["config"]["method"], report["layers"], report["seconds"]
    stages = [Bar(name, spent) for name, spent in main_stages(seconds)]
    measured = quality.command if quality else None
    return render(
        "report.html",
        report=report,
        title=f"{report['source']['name']}, folded: {report['plan']['ratio']:.1%} fewer parameters",
        summary=f"Method {method}: {method_words(method)}. {data_words(report)} No fine-tuning.",
        cards=_cards(report, quality),
        quality=quality,
        quality_rows=quality_rows(quality) if quality else [],
        notes=notes(quality) if quality else [],
        error_chart=_error_chart(layers, quality),
        layer_rows=_layer_rows(layers),
        kept=[],
        cluster_charts=_cluster_charts(layers),
        speed_rows=speed_rows(quality) if quality else [],
        stage_chart=bar_chart(stages, title="Seconds by stage", x_label="seconds") if stages else None,
        stage_rows=stage_rows(seconds, report.get("forward_pass_seconds")),
        commands=[fold_command(report["config"]), *([measured] if measured else [])],
        check=check_words(report["verification"]),
    )


def _cards(report: Mapping[str, Any], quality: Evaluation | None) -> list[tuple[str, str]]:
    """Numbers that stand out, each with its words."""
    parameters, nbytes = report["plan"]["parameters"], report["plan"]["bytes"]
    cards = [
        (human_count(parameters["after"]), f"parameters, from {human_count(parameters['before'])}"),
        (human_bytes(nbytes["after"]), f"weights, from {human_bytes(nbytes['before'])}"),
    ]
    if quality and quality.fidelity:
        cards.append((f"{quality.fidelity.top1:.1%}", "same next token as the dense model"))
        cards.append((f"{quality.fidelity.kl:.3f}", "KL to the dense model, nats per token"))
    spent, peak = human_seconds(sum(report["seconds"].values())), human_bytes(report["peak_memory_bytes"])
    return [*cards, (spent, "to fold"), (peak, "peak memory")]


def _layer_rows(layers: Layers) -> list[list[str]]:
    heading = ["layer", "MLP neurons", *_PART_HEADING, "KV groups", *_PART_HEADING]
    pairs = enumerate(part_rows(layers))
    return [heading, *([str(index), *_part_cells(mlp), *_part_cells(heads)] for index, (mlp, heads) in pairs)]


def _part_cells(row: PartRow | None) -> list[str]:
    if row is None:
        return [ABSENT] * 4
    return [row.widths, *(row.repair or ("clusters" if row.clusters else ABSENT, ABSENT, ABSENT))]


def _error_chart(layers: Layers, quality: Evaluation | None) -> str | None:
    """Errors of every layer as lines; None where none was measured."""
    series = [
        Series(
            label,
            [
                Point(float(index), layer[part]["error_after_repair"])
                for index, layer in enumerate(layers)
                if (layer.get(part) or {}).get("error_after_repair") is not None
            ],
        )
        for label, part in (("MLP", "mlp"), ("attention", "attention"))
    ]
    beside = []
    if quality and quality.fidelity and quality.fidelity.layer_errors:
        beside = ["of the hidden states after it, beside the dense model"]
        errors = enumerate(quality.fidelity.layer_errors)
        points = [Point(float(index), error) for index, error in errors if error is not None]
        series.append(Series("hidden states", points))
    drawn = [line for line in series if line.points]
    if not drawn:
        return None
    return line_chart(
        drawn,
        title="Relative squared error by layer",
        subtitle="; ".join(("of what a block adds, on tokens held back", *beside)),
        x_label="layer",
        y_label="relative squared error",
        x_format=plain,
    )


def _cluster_charts(layers: Layers) -> list[str]:
    """Clusters by size over all layers, a chart for every part that was clustered."""
    charts = []
    for part, units in (("mlp", "MLP neurons"), ("attention", "heads")):
        sizes: Counter[int] = Counter()
        for layer in layers:
            sizes.update({int(size): n for size, n in (layer.get(part) or {}).get("cluster_sizes", {}).items()})
        if sizes:
            shown = sorted(sizes)[:_MOST_BARS]
            bars = [Bar(f"{size} merged" if size > 1 else "alone", float(sizes[size])) for size in shown]
            chart = bar_chart(bars, title=f"Clusters of {units} by size", subtitle="all layers", x_label="clusters")
            charts.append(chart)
    return charts
