"""What reports say of image models: channels of couplings in place of layers, and how the output loads."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmfold.images.config import METHODS, ImageConfig
from llmfold.images.kind import CLASSIFIER
from llmfold.images.program import PROGRAM_FILE
from llmfold.records.fold import FoldRecord
from llmfold.report.markdown import code, megabytes, percent
from llmfold.report.plot import Bar, bar_chart
from llmfold.report.rendering import listed, render
from llmfold.report.rows import arrow, main_stages, stage_rows
from llmfold.report.words import check_words, data_words, fold_command, sentence_case
from llmfold.sizes import human_bytes, human_count, human_seconds

_PRUNING = ("inn", "magnitude-l1", "magnitude-l2")
_TASKS = {"CLIPModel": "zero-shot-image-classification"}


def page(report: Mapping[str, Any]) -> str:
    """Render report.html of an image model from the content of report.json."""
    plan, seconds = report["plan"], report["seconds"]
    parameters, nbytes = plan["parameters"], plan["bytes"]
    stages = [Bar(name, spent) for name, spent in main_stages(seconds)]
    return render(
        "report.html",
        report=report,
        title=f"{report['source']['name']}, folded: {plan['ratio']:.1%} fewer parameters",
        summary=f"Method {method_words(report['config']['method'], plan)}. {data_words(report)} No fine-tuning.",
        cards=[
            (human_count(parameters["after"]), f"parameters, from {human_count(parameters['before'])}"),
            (human_bytes(nbytes["after"]), f"weights, from {human_bytes(nbytes['before'])}"),
            (human_seconds(sum(seconds.values())), "to fold"),
            (human_bytes(report["peak_memory_bytes"]), "peak memory"),
        ],
        quality=None,
        quality_rows=[],
        notes=[],
        error_chart=None,
        layer_rows=width_rows(plan),
        kept=kept_words(plan["kept"]),
        cluster_charts=[],
        speed_rows=[],
        stage_chart=bar_chart(stages, title="Seconds by stage", x_label="seconds") if stages else None,
        stage_rows=stage_rows(seconds, None),
        commands=[fold_command(report["config"], ImageConfig)],
        check=check_words(report["verification"]),
    )


def card_values(report: FoldRecord) -> dict[str, Any]:
    """What the template of an image model's card is filled in with, but for names of models."""
    plan, config = report.plan, report.config
    rows = {
        "ratio asked for": f"{config['ratio']:g} of the {config['ratio_of']}",
        "removed": f"{percent(plan['ratio'])} of all parameters",
        "method": code(config["method"]),
        "repair": plan["repair"],
        **{code(path): change_words(change) for path, change in plan["config"].items()},
        "seed": config["seed"],
        "weights": f"{megabytes(plan['bytes']['before'])} → {megabytes(plan['bytes']['after'])}",
        "class": code(plan["image_class"]),
        "versions": listed(report.versions),
    }
    return {
        "report": report,
        "verb": "Folded" if merges(config["method"]) else "Pruned",
        "program": PROGRAM_FILE,
        "done": sentence_case(METHODS[config["method"]]),
        "widths": width_rows(plan),
        "kept": kept_words(plan["kept"]),
        "options": [("option", "value"), *((name, str(value)) for name, value in rows.items())],
        "fold_command": fold_command(config, ImageConfig),
        "data": data_words(report.to_dict()),
    }


def method_words(method: str, plan: Mapping[str, Any]) -> str:
    """A method of image models with its repair and what it does."""
    return f"{method}, repair {plan['repair']}: {METHODS[method]}"


def merges(method: str) -> bool:
    """Whether a method folds, rather than cuts."""
    return method not in _PRUNING


def task(plan: Mapping[str, Any]) -> str:
    """What the hub calls the task of a model."""
    name = str(plan["image_class"])
    return "image-classification" if name.endswith(CLASSIFIER) else _TASKS.get(name, "image-feature-extraction")


def width_rows(plan: Mapping[str, Any]) -> list[list[str]]:
    """Units by coupling, heading first."""
    rows = ([each["name"], arrow(each["before"], each["after"], ",")] for each in plan["couplings"])
    return [["made by", "channels"], *rows]


def change_words(change: Mapping[str, Any]) -> str:
    """``64, 128 → 45, 90``."""
    return " → ".join(_joined(change[side]) for side in ("before", "after"))


def kept_words(kept: Mapping[str, str]) -> list[str]:
    """What is kept and why, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in kept.items():
        by_reason.setdefault(why, []).append(name)
    return [f"{_shortened(names)}: {why}" for why, names in by_reason.items()]


def loads_as(plan: Mapping[str, Any]) -> str:
    """How the output is loaded, in a line."""
    name = plan["image_class"]
    return name if plan["stock"] else f"{PROGRAM_FILE} by torch.export: the config of {name} cannot say these widths"


def _shortened(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _joined(value: int | Sequence[int]) -> str:
    return str(value) if isinstance(value, int) else ", ".join(map(str, value))
