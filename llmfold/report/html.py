"""report.html: one page without scripts or outside resources, readable on a phone, light or dark by preference."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmfold.evaluation.scores import Evaluation
from llmfold.report.condense import main_stages, stage_rows, without_empty_columns
from llmfold.report.plot import Bar, Point, Series, bar_chart, line_chart, plain
from llmfold.report.scoreboard import notes, quality_rows, speed_rows
from llmfold.report.terminal import human_count
from llmfold.report.words import check_words, data_words, fold_command, method_words
from llmfold.sizes import human_bytes, human_seconds

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #59636e; --rule: #d8dee4; --card: #f6f8fa; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9aa4ae; --rule: #30363d; --card: #161b22; --page: #0d1117; }
}
body { margin: 0 auto; padding: 1rem; max-width: 50rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p, li { overflow-wrap: anywhere; } .dim, li { color: var(--dim); } li { margin: .2rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.cards div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .6rem .8rem; }
.cards b { display: block; font-size: 1.25rem; } .cards span { color: var(--dim); font-size: .85rem; }
.said { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0 1rem; margin: .8rem 0; }
.said b { grid-column: 1 / -1; } .said p { margin: .2rem 0; white-space: pre-line; }
.said i { display: block; color: var(--dim); font-size: .85rem; }
.warn { border-left: 4px solid #d4a72c; background: var(--card); padding: .6rem .9rem; border-radius: 4px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--dim); font-weight: 600; }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { display: block; width: 100%; min-width: 34rem; height: auto; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .7rem; overflow-x: auto;
  font-size: .85rem; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Mapping[str, Any]) -> str:
    """Render the page.

    Args:
        report: content of report.json.
    """
    title = f"{report['source']['name']}, folded: {report['plan']['ratio']:.1%} fewer parameters"
    quality = Evaluation.from_dict(report["quality"]) if report["quality"] else None
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(_summary(report))}</p>',
        _cards(report, quality),
        *(f'<p class="warn">{escape(text)}.</p>' for text in report["warnings"]),
        *(f'<p class="dim">{escape(text)}.</p>' for text in report["notes"]),
        *_samples(quality),
        *_quality(quality),
        *_layers(report, quality),
        *_clusters(report),
        *_speed(quality),
        *_time(report),
        *_origin(report, quality),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _summary(report: Mapping[str, Any]) -> str:
    method = report["config"]["method"]
    return f"Method {method}: {method_words(method)}. {data_words(report)} No fine-tuning."


def _cards(report: Mapping[str, Any], quality: Evaluation | None) -> str:
    plan = report["plan"]
    cards = [
        (human_count(plan["parameters"]["after"]), f"parameters, from {human_count(plan['parameters']['before'])}"),
        (human_bytes(plan["bytes"]["after"]), f"weights, from {human_bytes(plan['bytes']['before'])}"),
    ]
    if quality and quality.fidelity:
        cards.append((f"{quality.fidelity.top1:.1%}", "same next token as the dense model"))
        cards.append((f"{quality.fidelity.kl:.3f}", "KL to the dense model, nats per token"))
    cards.append((human_seconds(sum(report["seconds"].values())), "to fold"))
    cards.append((human_bytes(report["peak_memory_bytes"]), "peak memory"))
    return (
        '<div class="cards">' + "".join(f"<div><b>{a}</b><span>{escape(b)}</span></div>" for a, b in cards) + "</div>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *body = without_empty_columns(rows)
    return f'<div class="wide"><table>{line(head, "th")}{"".join(line(row, "td") for row in body)}</table></div>'


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _samples(quality: Evaluation | None) -> list[str]:
    if quality is None or not quality.samples:
        return []
    texts = [
        f'<div class="said"><b>{escape(sample.prompt)} …</b>'
        f"<p><i>dense</i> {escape(sample.dense)}</p><p><i>folded</i> {escape(sample.model)}</p></div>"
        for sample in quality.samples
    ]
    return ["<h2>The same prompt, continued by both</h2>", *texts]


def _quality(quality: Evaluation | None) -> list[str]:
    if quality is None:
        return []
    return ["<h2>Quality beside the dense model</h2>", _table(quality_rows(quality)), _list(notes(quality))]


def _speed(quality: Evaluation | None) -> list[str]:
    return ["<h2>Speed</h2>", _table(speed_rows(quality))] if quality and quality.speed else []


def _parts(report: Mapping[str, Any], name: str) -> list[tuple[int, Mapping[str, Any]]]:
    return [(index, layer[name]) for index, layer in enumerate(report["layers"]) if layer.get(name)]


def _layers(report: Mapping[str, Any], quality: Evaluation | None) -> list[str]:
    rows = [
        ["layer", "MLP neurons", "kept by", "error", "after repair", "KV groups", "kept by", "error", "after repair"]
    ]
    for index, layer in enumerate(report["layers"]):
        rows.append([str(index), *_part_cells(layer.get("mlp")), *_part_cells(layer.get("attention"))])
    series = [
        Series(label, [Point(float(i), _final_error(part)) for i, part in _parts(report, name) if _measured(part)])
        for label, name in (("MLP", "mlp"), ("attention", "attention"))
    ]
    if quality and quality.fidelity and quality.fidelity.layer_errors:
        errors = quality.fidelity.layer_errors
        series.append(Series("hidden states", [Point(float(i), error) for i, error in enumerate(errors)]))
    drawn = [line for line in series if line.points]
    out = ["<h2>Layers</h2>"]
    if drawn:
        chart = line_chart(
            drawn,
            title="Relative squared error by layer",
            subtitle="of what a block adds, on tokens held back; of the hidden states after it, beside the dense model",
            x_label="layer",
            y_label="relative squared error",
            x_format=plain,
        )
        out.append(_figure(chart))
    return [*out, _table(rows)]


def _measured(part: Mapping[str, Any]) -> bool:
    return part.get("error_after_repair") is not None


def _final_error(part: Mapping[str, Any]) -> float:
    return float(part["error_after_repair"])


def _part_cells(part: Mapping[str, Any] | None) -> list[str]:
    if part is None:
        return ["–"] * 4
    before = part.get("error_before_repair")
    return [
        f"{part['before']} → {part['after']}",
        f"{part['ridge']:g}" if "ridge" in part else ("clusters" if "cluster_sizes" in part else "–"),
        "–" if before is None else f"{before:.3f}",
        f"{_final_error(part):.3f}" if _measured(part) else "–",
    ]


def _clusters(report: Mapping[str, Any]) -> list[str]:
    out: list[str] = []
    for name, what in (("mlp", "MLP neurons"), ("attention", "heads")):
        sizes: Counter[int] = Counter()
        for _, part in _parts(report, name):
            sizes.update({int(size): count for size, count in part.get("cluster_sizes", {}).items()})
        if sizes:
            bars = [Bar(f"{size} merged" if size > 1 else "alone", float(sizes[size])) for size in sorted(sizes)[:12]]
            chart = bar_chart(bars, title=f"Clusters of {what} by size", subtitle="all layers", x_label="clusters")
            out.append(_figure(chart))
    return ["<h2>Clusters</h2>", *out] if out else []


def _time(report: Mapping[str, Any]) -> list[str]:
    stages = main_stages(report["seconds"])
    if not stages:
        return []
    bars = [Bar(name, seconds) for name, seconds in stages]
    rows = stage_rows(report["seconds"], report.get("forward_pass_seconds"))
    return ["<h2>Time</h2>", _figure(bar_chart(bars, title="Seconds by stage", x_label="seconds")), _table(rows)]


def _origin(report: Mapping[str, Any], quality: Evaluation | None) -> list[str]:
    commands = [fold_command(report["config"]), *([quality.command] if quality and quality.command else [])]
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value is not None)
    check = check_words(report["verification"])
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return [
        "<h2>How it was made</h2>",
        f"<pre>{escape(chr(10).join(commands))}</pre>",
        _list(
            [
                f"seed {report['config']['seed']}",
                versions,
                machine,
                f"reload check {check}",
            ]
        ),
        '<p class="dim">Method: model folding, Wang et al., ICLR 2025, arXiv 2502.10216.</p>',
    ]
