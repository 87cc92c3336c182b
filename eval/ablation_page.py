"""The page of what ``eval/ablate.py`` has measured: a table for each model and axis."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ablation_cases import AXES, BY_LAYER, Case
from keeping import place

RESULTS = Path(__file__).parent / "results" / "ablation"


def page() -> None:
    """Write the table of all cases that stand."""
    lines = ["# What a fold loses, and to what", ""]
    lines += [
        "Made by `python eval/ablate.py run MODEL --name NAME --axis AXIS …` (headings are axes; a case by itself is "
        "`--case word=value,…`), whose `Case` says what each word means: all MLPs narrowed, in float32, in memory."
    ]
    lines += ["Excess log-perplexity by text; errors are means over layers of one MLP's output.", ""]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
        dense = found.pop("dense")
        texts = list(dense["nll"])
        lines += [f"## {folder.name}", "", dense["note"], ""]
        named = {case.name for cases in AXES.values() for case in cases}
        others = [Case(**each["case"]) for name, each in found.items() if name not in named]
        for axis, cases in [*AXES.items(), ("others", others)]:
            rows = [(case, found[case.name]) for case in cases if case.name in found]
            if rows:
                lines += [f"### {axis}", "", f"| case | {' | '.join(texts)} | fitted | held back | unseen |"]
                lines.append("|---|" + "---:|" * (len(texts) + 3))
                lines += [_row(case, result, dense, texts) for case, result in rows]
                lines.append("")
        lines += _by_layer([(case, found[case.name]) for case in BY_LAYER if case.name in found])
        lines += [f"- {name}: {words}" for name, words in dense["protocols"].items()]
        lines += ["", place(dense), ""]
    (RESULTS.parent / "ablation.md").write_text("\n".join(lines), encoding="utf-8")


def _by_layer(cases: list[tuple[Case, dict[str, Any]]]) -> list[str]:
    """Errors of each layer: on the rows fitted to, on those held back, and on text that is like neither."""
    if not cases:
        return []
    heads = (f"{_words(case)}: fitted | held back | unseen" for case, _ in cases)
    lines = ["### by layer", "", f"| layer | {' | '.join(heads)} |", "|---|" + "---:|" * (3 * len(cases))]
    for layers in zip(*(found["layers"] for _, found in cases), strict=True):
        cells = (f"{layer[key]:.4f}" for layer in layers for key in ("fitted", "held", "unseen"))
        lines.append(f"| {layers[0]['layer']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _words(case: Case) -> str:
    return ", ".join(f"{key} {value}" for key, value in case.given.items()) or "base"


def _row(case: Case, found: dict[str, Any], dense: dict[str, Any], texts: list[str]) -> str:
    excess = [f"{found['nll'][text] - dense['nll'][text]:.3f}" for text in texts]
    means = [
        np.mean([layer.get("refined", layer[key]) if key == "held" else layer[key] for layer in found["layers"]])
        for key in ("fitted", "held", "unseen")
    ]
    return f"| {_words(case)} | {' | '.join(excess)} | {' | '.join(f'{value:.4f}' for value in means)} |"
