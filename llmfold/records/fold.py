"""What a fold did, as data: everything a person needs to recompute the numbers that were printed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmfold.environment import machine, versions
from llmfold.planning.cost import passes
from llmfold.records.plain import finite

REPORT_FILE, PAGE_FILE = "report.json", "report.html"


def is_of_image(plan: Mapping[str, Any]) -> bool:
    """Whether a plan, as data, is of an image model: it has couplings in place of layers, and names its class."""
    return "image_class" in plan


@dataclass
class FoldRecord:
    """What a fold did.

    Attributes:
        output: the folder that was published.
        source: name and revision of the model that was read.
        config: every option.
        plan: widths, parameters and bytes before and after.
        layers: by layer, clusters and seconds of each part; none of an image model.
        data: what the method looked at beside the weights: nothing, tokens of the model itself, or outside text.
        verification: what the reload check compared.
        seconds: time by stage.
        forward_pass_seconds: one forward pass of the dense model over the tokens that were measured on, on this
            machine; None where it was not timed.
        peak_memory_bytes: largest anonymous memory seen (RssAnon).
        resumed_layers: layers that an earlier, interrupted run had finished.
        warnings: why the result may disappoint, a sentence each.
        notes: what else a person should know beside the numbers.
        quality: what was measured beside the dense model afterwards; see :class:`llmfold.evaluation.scores.Evaluation`.
        base_card: licence and languages from the card of the model that was read, where it has one.
    """

    output: Path
    source: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    layers: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    forward_pass_seconds: float | None = None
    peak_memory_bytes: int = 0
    resumed_layers: int = 0
    quality: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    machine: dict[str, Any] = field(default_factory=machine)
    base_card: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters_before(self) -> int:
        """Parameters of the model read, tied embeddings once."""
        return int(self.plan["parameters"]["before"])

    @property
    def parameters_after(self) -> int:
        """Parameters of the model written."""
        return int(self.plan["parameters"]["after"])

    @property
    def ratio(self) -> float:
        """Fraction of all parameters that went."""
        return float(self.plan["ratio"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, its numbers finite or None, stages in passes too; of the output path the folder's name."""
        spent = passes(self.seconds, self.forward_pass_seconds)
        plain: dict[str, Any] = finite({**asdict(self), "output": self.output.name, "passes": spent})
        return plain
