"""The model card: README.md of an output folder, made from its report alone.

The card depends neither on the folder's name nor on timings nor on how the run was checked: same fold, same card.
"""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from llmfold.config import FOLDS
from llmfold.demo import DEMO_NAME
from llmfold.evaluation.fidelity import POOR
from llmfold.hub.base_card import CARD_FILE
from llmfold.hub.quality import Quality
from llmfold.report.record import FoldReport

BASE_MODEL_RELATION = "finetune"
"""Of the relations that the hub knows (adapter, merge, quantized, finetune) the one it gives to other full weights."""
PLACEHOLDER = "path/to/this/folder"
_PLACE = re.compile(r'from_pretrained\("([^"]+)"')
_CHOSEN = "Units are chosen by the error of their layer's output after repair, measured on"
_REFIT = "what reads them is refit in closed form"
_METHODS = {
    "self": f"{_CHOSEN} tokens sampled from the base model itself; {_REFIT}",
    "calibrated": f"{_CHOSEN} outside text; {_REFIT}",
    "weights": f"{_CHOSEN} residual vectors drawn from what the weights imply; {_REFIT}",
    "paper": "Model folding as published: units are clustered by their weights, and every cluster becomes one unit",
}
_CITATION = """@inproceedings{wang2025forget,
  title     = {Forget the Data and Fine-Tuning! Just Fold the Network to Compress},
  author    = {Dong Wang and Haris \\v{S}iki\\'{c} and Lothar Thiele and Olga Saukh},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2502.10216}
}"""
_WIDTHS = (("MLP neurons", "intermediate"), ("query heads", "heads"), ("KV heads", "kv_heads"))


def render(report: FoldReport, *, repo_id: str | None = None, quality: Quality | None = None) -> str:
    """Render the card of a fold.

    Args:
        report: what was done.
        repo_id: where on the hub the model will be; shown in the lines that load it.
        quality: what is known of the quality; ``None``: what the report holds, if anything.

    Returns:
        Markdown behind a block of YAML metadata, as the hub wants README.md.
    """
    if quality is None:
        quality = Quality.of_evaluation(report.to_dict().get("quality") or {})
    sections = [
        _title(report),
        _warning(quality),
        _usage(report, repo_id or PLACEHOLDER),
        _work(report),
        _quality(report, quality),
        _data(report),
        _limits(report),
        f"## Citation\n\nModel folding:\n\n```bibtex\n{_CITATION}\n```",
    ]
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{metadata(report).to_yaml()}\n---\n\n{body}\n"))


def metadata(report: FoldReport) -> ModelCardData:
    """The card's metadata; ``base_model`` only where the base is a model of the hub, for the hub makes a link of it."""
    base = hub_id(report)
    relation: dict[str, Any] = {"base_model": base, "base_model_relation": BASE_MODEL_RELATION} if base else {}
    folded = report.config["method"] in FOLDS
    return ModelCardData(
        **relation,
        **report.base_card,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llmfold", "compression", *(["model-folding"] if folded else ["pruning"])],
    )


def write(folder: Path, text: str) -> None:
    """Put the card into ``folder`` in one rename."""
    scratch = folder / f".{CARD_FILE}.new"
    try:
        scratch.write_text(text, encoding="utf-8", newline="\n")
        os.replace(scratch, folder / CARD_FILE)
    finally:
        scratch.unlink(missing_ok=True)


def address(folder: Path, report: FoldReport, repo_id: str) -> None:
    """Let the card in ``folder`` load the model from the hub; a card that someone has edited stays as it is."""
    path = folder / CARD_FILE
    if path.exists():
        there = path.read_text(encoding="utf-8", errors="replace")
        place = _PLACE.search(there)
        if place is None or there != render(report, repo_id=place.group(1)):
            return
    write(folder, render(report, repo_id=repo_id))


def hub_id(report: FoldReport) -> str | None:
    """Name of the base model on the hub, or None where it was a local folder or the demo."""
    return str(report.source["name"]) if report.source.get("revision") else None


def _base(report: FoldReport) -> str:
    """The base model in a sentence."""
    name = hub_id(report)
    if name:
        return f"[{name}](https://huggingface.co/{name}) (revision `{str(report.source['revision'])[:12]}`)"
    if report.source["name"] == DEMO_NAME:
        return "the demo checkpoint that ships with llmfold"
    return _code(report.source["name"])


def _title(report: FoldReport) -> str:
    name = str(report.source["name"]).split("/")[-1]
    verb = "Folded" if report.config["method"] in FOLDS else "Pruned"
    data = "with outside text for calibration" if _outside(report) else "without outside data"
    return (
        f"# {_plain(name)}, {verb.lower()}: {_percent(report.ratio)} smaller\n\n"
        f"{verb} by llmfold {report.versions.get('llmfold', '')} from {_base(report)}, {data} and without fine-tuning: "
        f"{report.parameters_before:,} → {report.parameters_after:,} parameters."
    )


def _warning(quality: Quality) -> str:
    if not quality.poor:
        return ""
    return (
        "> **Warning: this model is far from the one it was made from.** The text it writes may not make sense. "
        f"(This is said where the two agree on the likeliest next token less than {_percent(POOR)} of the time.) "
        "A smaller ratio would keep more."
    )


def _usage(report: FoldReport, place: str) -> str:
    remote = report.plan["needs_trust_remote_code"]
    arguments = f'"{place}", dtype="auto"' + (", trust_remote_code=True" if remote else "")
    after = (
        "Layers have widths of their own, which no stock class knows, so the folder carries a small modelling file: "
        "`trust_remote_code=True` runs it."
        if remote
        else "Stock transformers loads it; llmfold need not be installed."
    )
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({arguments})\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n```\n\n{after}'
    )


def _work(report: FoldReport) -> str:
    plan, config = report.plan, report.config
    method = config["method"]
    what = _METHODS.get(method, f"Units are removed as the baseline {_code(method)} says, for comparison with folding")
    steps = _refine_steps(report)
    if steps:
        what += f"; gate and up rows are refit in up to {steps} Gauss-Newton steps, kept where held-back tokens gain"
    shape = {"clusters": config["cluster"], "alignment": config["align"], "repair": config["repair"]}
    removed = f"{_percent(plan['ratio'])} of all parameters, {_percent(plan['decoder_ratio'])} of the decoder layers"
    asked = {
        "ratio asked for": _asked(config),
        "removed": removed,
        "method": _code(method),
        **(shape if method == "paper" else {}),
        "widths": "by layer, from a recipe" if config["layers"] else config["allocation"],
        "seed": config["seed"],
        "weights": f"{_megabytes(plan['bytes']['before'])} → {_megabytes(plan['bytes']['after'])}",
        "class": _code(plan["written_as"]),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return "\n\n".join(
        [
            "## What was done",
            f"{what}.",
            _table(("layers", *(name for name, _ in _WIDTHS)), _spans(plan["layers"])),
            _table(("option", "value"), [(name, str(value)) for name, value in asked.items()], right=False),
            "`report.json` has every option, width and error by layer.",
        ]
    )


def _quality(report: FoldReport, quality: Quality) -> str:
    rows = quality.rows()
    if not rows:
        base = hub_id(report) or (DEMO_NAME if report.source["name"] == DEMO_NAME else "BASE")
        command = f"llmfold eval --model {PLACEHOLDER} --against {base}"
        return (
            f"## Quality against the dense model\n\nNot measured in this run. To measure it:\n\n```bash\n{command}\n```"
        )
    table = _table(("", "dense", "this model"), [(row.name, row.dense, row.folded) for row in rows])
    protocols = "\n".join(f"- {protocol}" for protocol in quality.protocols)
    return f"## Quality against the dense model\n\n{table}\n\n{protocols}".rstrip()


def _data(report: FoldReport) -> str:
    facts = report.data
    amount = f"{facts.get('sequences')} sequences of {facts.get('sequence_length')} tokens"
    if _outside(report):
        name = _code(report.config["data"])
        text = (
            f"Outside text: {amount} of {name} were read to choose and repair units. **This model is not data-free.**"
        )
    elif facts.get("data", "none") == "none":
        text = "None: nothing but the base checkpoint was read."
    else:
        text = (
            f"No outside text. {amount} were sampled from the base model itself to choose and repair units; "
            "they are in `llmfold_tokens.npy`."
        )
    doubt = f"\n\nNote: {facts['warning']}." if facts.get("warning") else ""
    return f"## Data used\n\n{text}{doubt}"


def _limits(report: FoldReport) -> str:
    terms = "" if "license" in report.base_card else " No licence was found with the base model, so none is named here."
    points = [
        "A smaller model knows less: measure it on your own task before you rely on it.",
        f"Intended uses, biases, restrictions and terms are those of the base model.{terms}",
        "It was not fine-tuned after folding. Fine-tuning, distillation or quantisation can follow.",
    ]
    if hub_id(report):
        points.append("The hub has no relation for folded models; `finetune` is how it lists any other full weights.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _outside(report: FoldReport) -> bool:
    return str(report.data.get("data", "none")).startswith("outside")


def _refine_steps(report: FoldReport) -> int:
    """The most steps any layer was refined for."""
    mlps = [record.get("mlp") or {} for record in report.layers]
    return max((len(mlp.get("refined_errors") or [0]) - 1 for mlp in mlps), default=0)


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
        cells = [_arrow(widths["before"][key], widths["after"][key]) for _, key in _WIDTHS]
        rows.append((str(first) if first == last else f"{first}–{last}", *cells))
    return rows


def _arrow(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = True) -> str:
    """A Markdown table, all columns but the first to the right, or all to the left."""
    rule = ["---", *(("---:" if right else "---") for _ in head[1:])]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (head, rule, *rows))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: object) -> str:
    """Text of the user's as code: whatever is in it, it stays text."""
    return f"`{_plain(str(text).replace('`', ''))}`"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
