"""What was done, as the model card tells it: method, widths, options, every layer, and the command."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from llmfold.records.fold import FoldRecord
from llmfold.registry import MethodFacts, methods
from llmfold.report.markdown import arrow, code, megabytes, percent, table
from llmfold.report.words import fold_command

_OF_CLUSTERING = {"clusters": "cluster", "alignment": "align", "repair": "repair"}
_WIDTHS = (("MLP neurons", "intermediate"), ("query heads", "heads"), ("KV heads", "kv_heads"))


def work(report: FoldRecord) -> str:
    """The section on what was done."""
    plan, config = report.plan, report.config
    method = config["method"]
    facts = methods().get(method, MethodFacts())
    what = facts.sentence or f"Units are removed as the baseline {code(method)} says, for comparison with folding"
    if any((record.get("mlp") or {}).get("refined_errors") for record in report.layers):
        steps = f"{config['refine']} gradient steps on each layer alone"
        what += f"; gate, up and down rows are refined by {steps}, kept where held-back tokens gain"
    shape = {name: config[option] for name, option in _OF_CLUSTERING.items() if option in facts.options}
    removed = f"{percent(plan['ratio'])} of all parameters, {percent(plan['decoder_ratio'])} of the decoder layers"
    asked = {
        "ratio asked for": _asked(config),
        "removed": removed,
        "method": code(method),
        **shape,
        "widths": "by layer, from a recipe" if config["layers"] else config["allocation"],
        "seed": config["seed"],
        "weights": f"{megabytes(plan['bytes']['before'])} → {megabytes(plan['bytes']['after'])}",
        "class": code(plan["written_as"]),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return "\n\n".join(
        [
            "## What was done",
            f"{what}.",
            table(("layers", *(name for name, _ in _WIDTHS)), _spans(plan["layers"])),
            table(("option", "value"), [(name, str(value)) for name, value in asked.items()], right=False),
            _layers(report),
            f"The command:\n\n```bash\n{fold_command(report.config)}\n```\n\n`report.json` has all of this as data.",
        ]
    )


def _asked(config: dict[str, Any]) -> str:
    parts = [] if config["ratio"] is None else [f"{config['ratio']:g} of the {config['ratio_of']}"]
    names = (("mlp_ratio", "MLP neurons"), ("attention_ratio", "KV groups"))
    parts += [f"{config[key]:g} of the {name}" for key, name in names if config[key] is not None]
    return ", ".join(parts) or "by layer"


def _spans(layers: Sequence[dict[str, dict[str, int]]]) -> list[tuple[str, ...]]:
    """Rows of widths; neighbouring layers that share theirs share a row."""
    rows = []
    for _, group in groupby(enumerate(layers), key=lambda item: item[1]):
        members = list(group)
        first, last, widths = members[0][0], members[-1][0], members[0][1]
        cells = [arrow(widths["before"][key], widths["after"][key]) for _, key in _WIDTHS]
        rows.append((str(first) if first == last else f"{first}–{last}", *cells))
    return rows


def _layers(report: FoldRecord) -> str:
    """What became of every layer, folded away: a deep model has many."""
    parts = [
        (str(index), name, part)
        for index, record in enumerate(report.layers)
        for name, part in (("MLP", record.get("mlp")), ("heads", record.get("attention")))
        if part
    ]
    repaired = [(index, name, *_repaired(part)) for index, name, part in parts if "ridge" in part]
    merged = [(index, name, *_merged(part)) for index, name, part in parts if "cluster_sizes" in part]
    blocks = []
    if repaired:
        note = (
            "Errors are relative squared errors of what the part should add to the residual stream, on inputs held "
            "back, before and after repair."
        )
        blocks += [note, table(("layer", "part", "width", "ridge", "error", "repaired"), repaired)]
    if merged:
        note = (
            "Clusters that merge several units, the largest, and their inertia over its lower bound where there is one."
        )
        blocks += [note, table(("layer", "part", "width", "merging clusters", "largest", "inertia / bound"), merged)]
    if not blocks:
        return "No layer records more than its widths."
    inside = "\n\n".join(blocks)
    return f"<details>\n<summary>Layer by layer</summary>\n\n{inside}\n\n</details>"


def _repaired(part: dict[str, Any]) -> tuple[str, ...]:
    before = part["error_before_repair"]
    after = part["error_after_repair"]
    return (
        arrow(part["before"], part["after"]),
        f"{part['ridge']:g}",
        "–" if before is None else f"{before:.3f}",
        f"{after:.3f}",
    )


def _merged(part: dict[str, Any]) -> tuple[str, ...]:
    sizes = {int(size): count for size, count in part["cluster_sizes"].items()}
    several = sum(count for size, count in sizes.items() if size > 1)
    bound = f"{part['inertia'] / part['inertia_bound']:.2f}" if part["inertia_bound"] else "–"
    return arrow(part["before"], part["after"]), f"{several:,}", f"{max(sizes):,}", bound
