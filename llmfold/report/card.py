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
from llmfold.records.fold import FoldRecord
from llmfold.report.card_quality import Quality
from llmfold.report.card_work import work
from llmfold.report.markdown import code, percent, plain, table
from llmfold.report.words import folds
from llmfold.runtime.storage import replace_text

BASE_MODEL_RELATION = "finetune"
"""Of the relations that the hub knows (adapter, merge, quantized, finetune) the one it gives to other full weights."""
PLACEHOLDER = "path/to/this/folder"
_PLACE = re.compile(r'from_pretrained\("([^"]+)"')
_CITATION = """@inproceedings{wang2025forget,
  title     = {Forget the Data and Fine-Tuning! Just Fold the Network to Compress},
  author    = {Dong Wang and Haris \\v{S}iki\\'{c} and Lothar Thiele and Olga Saukh},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2502.10216}
}"""


def render(report: FoldRecord, *, repo_id: str | None = None, quality: Quality | None = None) -> str:
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
        work(report),
        _quality(report, quality),
        _data(report),
        _limits(report),
        f"## Citation\n\nModel folding:\n\n```bibtex\n{_CITATION}\n```",
    ]
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{metadata(report).to_yaml()}\n---\n\n{body}\n"))


def metadata(report: FoldRecord) -> ModelCardData:
    """The card's metadata; ``base_model`` only where the base is a model of the hub, for the hub makes a link of it."""
    base = hub_id(report)
    relation: dict[str, Any] = {"base_model": base, "base_model_relation": BASE_MODEL_RELATION} if base else {}
    folded = folds(report.config["method"])
    return ModelCardData(
        **relation,
        **report.base_card,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llmfold", "compression", *(["model-folding"] if folded else ["pruning"])],
    )


def address(folder: Path, report: FoldRecord, repo_id: str) -> None:
    """Let the card in ``folder`` load the model from the hub; a card that someone has edited stays as it is."""
    path = folder / CARD_FILE
    if path.exists():
        there = path.read_text(encoding="utf-8", errors="replace")
        place = _PLACE.search(there)
        if place is None or there != render(report, repo_id=place.group(1)):
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


def _title(report: FoldRecord) -> str:
    name = str(report.source["name"]).split("/")[-1]
    verb = "Folded" if folds(report.config["method"]) else "Pruned"
    data = "with outside text for calibration" if _outside(report) else "without outside data"
    return (
        f"# {plain(name)}, {verb.lower()}: {percent(report.ratio)} smaller\n\n"
        f"{verb} by llmfold {report.versions.get('llmfold', '')} from {_base(report)}, {data} and without fine-tuning: "
        f"{report.parameters_before:,} → {report.parameters_after:,} parameters."
    )


def _warning(quality: Quality) -> str:
    if not quality.poor:
        return ""
    return (
        "> **Warning: this model is far from the one it was made from.** The text it writes may not make sense. "
        f"(This is said where the two agree on the likeliest next token less than {percent(POOR)} of the time.) "
        "A smaller ratio would keep more."
    )


def _usage(report: FoldRecord, place: str) -> str:
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


def _quality(report: FoldRecord, quality: Quality) -> str:
    rows = quality.rows()
    if not rows:
        base = hub_id(report) or (DEMO_NAME if report.source["name"] == DEMO_NAME else "BASE")
        command = f"llmfold eval --model {PLACEHOLDER} --against {base}"
        return (
            f"## Quality against the dense model\n\nNot measured in this run. To measure it:\n\n```bash\n{command}\n```"
        )
    beside = table(("", "dense", "this model"), [(row.name, row.dense, row.folded) for row in rows])
    protocols = "\n".join(f"- {protocol}" for protocol in quality.protocols)
    return f"## Quality against the dense model\n\n{beside}\n\n{protocols}".rstrip()


def _data(report: FoldRecord) -> str:
    facts = report.data
    amount = f"{facts.get('sequences')} sequences of {facts.get('sequence_length')} tokens"
    if _outside(report):
        name = code(report.config["data"])
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


def _limits(report: FoldRecord) -> str:
    terms = "" if "license" in report.base_card else " No licence was found with the base model, so none is named here."
    points = [
        "A smaller model knows less: measure it on your own task before you rely on it.",
        f"Intended uses, biases, restrictions and terms are those of the base model.{terms}",
        "It was not fine-tuned after folding. Fine-tuning, distillation or quantisation can follow.",
    ]
    if hub_id(report):
        points.append("The hub has no relation for folded models; `finetune` is how it lists any other full weights.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _outside(report: FoldRecord) -> bool:
    return str(report.data.get("data", "none")).startswith("outside")
