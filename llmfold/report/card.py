"""The model card: README.md of an output folder, made from its report alone.

The card depends neither on the folder's name nor on timings nor on how the run was checked: same fold, same card.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from llmfold.checkpoint.base_card import CARD_FILE
from llmfold.demo import DEMO_NAME
from llmfold.evaluation.fidelity import POOR
from llmfold.evaluation.scores import Evaluation
from llmfold.planning.depth import removal_words
from llmfold.records.fold import FoldRecord, is_of_image
from llmfold.registry import MethodFacts, methods
from llmfold.report import images, rendering
from llmfold.report.markdown import code, megabytes, percent
from llmfold.report.rows import arrow, part_rows, width_rows
from llmfold.report.scoreboard import notes, score_rows, speed_rows
from llmfold.report.words import fold_command, folds
from llmfold.runtime.storage import replace_text

BASE_MODEL_RELATION = "finetune"
"""Of the relations that the hub knows (adapter, merge, quantized, finetune) the one it gives to other full weights."""
PLACEHOLDER = "path/to/this/folder"
_PLACE = re.compile(r'from_pretrained\("([^"]+)"')
_OF_CLUSTERING = {"clusters": "cluster", "alignment": "align", "repair": "repair"}
Rows = list[tuple[str, ...]]


def render(report: FoldRecord, *, repo_id: str | None = None) -> str:
    """Render the card of a fold.

    Args:
        report: what was done.
        repo_id: where on the hub the model will be; shown in the lines that load it.

    Returns:
        Markdown behind a block of YAML metadata, as the hub wants README.md.
    """
    if is_of_image(report.plan):
        body = rendering.render(
            "image_card.md",
            **images.card_values(report),
            base=_base(report),
            hub_id=hub_id(report),
            place=repo_id or PLACEHOLDER,
        )
        return _with_metadata(report, body)
    quality = Evaluation.from_dict(report.quality) if report.quality else None
    base = hub_id(report) or (DEMO_NAME if report.source["name"] == DEMO_NAME else None)
    repaired, merged = _layer_rows(report)
    body = rendering.render(
        "card.md",
        report=report,
        verb="Folded" if folds(report.config["method"]) else "Pruned",
        hub_id=hub_id(report),
        base=_base(report),
        outside=str(report.data.get("data", "none")).startswith("outside"),
        poor=bool(quality and quality.fidelity and quality.fidelity.warning),
        poor_below=POOR,
        place=repo_id or PLACEHOLDER,
        done=_done(report),
        widths=width_rows(report.plan["layers"], "–", ","),
        options=_option_rows(report),
        repaired=repaired,
        merged=merged,
        fold_command=fold_command(report.config),
        quality_rows=_quality_rows(quality) if quality else [],
        protocols=notes(quality) if quality else [],
        eval_command=f"llmfold eval --model {PLACEHOLDER} --against {base or 'BASE'}",
    )
    return _with_metadata(report, body)


def _with_metadata(report: FoldRecord, body: str) -> str:
    return str(ModelCard(f"---\n{metadata(report).to_yaml()}\n---\n\n{body}"))


def metadata(report: FoldRecord) -> ModelCardData:
    """The card's metadata; ``base_model`` only where the base is a model of the hub, for the hub makes a link of it."""
    base = hub_id(report)
    relation: dict[str, Any] = {"base_model": base, "base_model_relation": BASE_MODEL_RELATION} if base else {}
    of_image, method = is_of_image(report.plan), report.config["method"]
    merges = images.merges(method) if of_image else folds(method)
    return ModelCardData(
        **relation,
        **report.base_card,
        library_name="transformers",
        pipeline_tag=images.task(report.plan) if of_image else "text-generation",
        tags=["llmfold", "compression", "model-folding" if merges else "pruning"],
    )


def address(folder: Path, report: FoldRecord, repo_id: str) -> None:
    """Let the card in ``folder`` load the model from the hub; a card that someone has edited stays as it is."""
    path = folder / CARD_FILE
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        place = _PLACE.search(text)
        if place is None or text != render(report, repo_id=place.group(1)):
            return
    replace_text(path, render(report, repo_id=repo_id))


def hub_id(report: FoldRecord) -> str | None:
    """Name of the base model on the hub, or None where it was a local folder or the demo."""
    return str(report.source["name"]) if report.source.get("revision") else None


def _base(report: FoldRecord) -> str:
    """The base model in a sentence."""
    name = hub_id(report)
    if name:
        return f"[{name}](https://huggingface.co/{name}) (revision `{str(report.source['revision'])[:12]}`)"
    if report.source["name"] == DEMO_NAME:
        return "the demo checkpoint that ships with llmfold"
    return code(report.source["name"])


def _done(report: FoldRecord) -> str:
    """What the method did, in a sentence without its full stop."""
    method, gone = report.config["method"], report.plan.get("blocks_removed")
    facts = methods().get(method, MethodFacts())
    sentence = facts.sentence or f"Units are removed as the baseline {code(method)} says, for comparison with folding"
    if gone and all(layer["before"] == layer["after"] for layer in report.plan["layers"]):
        sentence = "No block is narrowed"
    if any((layer.get("mlp") or {}).get("refined_errors") for layer in report.layers):
        steps = f"{report.config['refine']} gradient steps on one layer after another"
        sentence += f"; MLPs are refined by {steps}, kept where held-back tokens gain"
    if gone:
        words = removal_words(gone, report.plan["blocks"])
        sentence += f"; {words}, and what reads the MLP before each was refit to give what both gave"
    return sentence


def _option_rows(report: FoldRecord) -> Rows:
    """Options and what came of them, heading first."""
    plan, config = report.plan, report.config
    facts = methods().get(config["method"], MethodFacts())
    whole, decoder, nbytes = percent(plan["ratio"]), percent(plan["decoder_ratio"]), plan["bytes"]
    rows = {
        "ratio asked for": _asked(config),
        "removed": f"{whole} of all parameters, {decoder} of the decoder layers",
        "method": code(config["method"]),
        **{name: config[option] for name, option in _OF_CLUSTERING.items() if option in facts.options},
        "widths": "by layer, from a recipe" if config["layers"] else config["allocation"],
        "seed": config["seed"],
        "weights": f"{megabytes(nbytes['before'])} → {megabytes(nbytes['after'])}",
        "class": code(plan["written_as"]),
        "versions": rendering.listed(report.versions),
    }
    return [("option", "value"), *((name, str(value)) for name, value in rows.items())]


def _asked(config: dict[str, Any]) -> str:
    units = {"ratio": config["ratio_of"], "mlp_ratio": "MLP neurons", "attention_ratio": "KV groups"}
    parts = [f"{config[key]:g} of the {unit}" for key, unit in units.items() if config[key] is not None]
    if isinstance(config.get("depth"), int):
        parts.append(f"{config['depth']} of the blocks")
    return ", ".join(parts) or "by layer"


def _layer_rows(report: FoldRecord) -> tuple[Rows, Rows]:
    """Rows of all parts that were repaired, and of all whose units were clustered."""
    repaired: Rows = []
    merged: Rows = []
    for index, parts in enumerate(part_rows(report.layers)):
        for name, row in zip(("MLP", "heads"), parts, strict=True):
            if row is None:
                continue
            place = (str(index), name, arrow(row.before, row.after, ","))
            if row.repair:
                repaired.append((*place, *row.repair))
            if row.clusters:
                merging, largest, inertia = row.clusters
                merged.append((*place, f"{merging:,}", f"{largest:,}", inertia))
    return repaired, merged


def _quality_rows(quality: Evaluation) -> Rows:
    """Name, dense model and folded model, closeness first."""
    rows: Rows = []
    close = quality.fidelity
    if close:
        rows.append(("KL to the dense model, nats per token", "0", f"{close.kl:.4f}"))
        rows.append(("top-1 agreement with the dense model", "100 %", f"{100 * close.top1:.1f} %"))
    return [*rows, *(tuple(row[:3]) for row in (*score_rows(quality), *speed_rows(quality)[1:]))]
