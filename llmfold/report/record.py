"""What a fold did, as data: everything a person needs to recompute the numbers that were printed."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

REPORT_FILE = "report.json"
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
    from llmfold import __version__

    found = {"python": platform.python_version(), "llmfold": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The machine in words: system, processor, threads, accelerator."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@dataclass
class FoldReport:
    """Result of a fold.

    Attributes:
        output: the folder that was published.
        source: name and revision of the model that was read.
        config: every option.
        plan: widths, parameters and bytes before and after.
        layers: by layer, clusters and seconds of each part.
        data: what the method looked at beside the weights: nothing, tokens of the model itself, or outside text.
        verification: what the reload check compared.
        seconds: time by stage.
        peak_memory_bytes: largest anonymous memory seen (RssAnon).
        resumed_layers: layers that an earlier, interrupted run had finished.
    """

    output: Path
    source: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    layers: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    resumed_layers: int = 0
    versions: dict[str, str] = field(default_factory=versions)
    machine: dict[str, Any] = field(default_factory=machine)

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
        """Plain data; the output path is reduced to the folder's name."""
        return {**asdict(self), "output": self.output.name}

    def save(self, folder: Path) -> None:
        """Write report.json into ``folder``."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "FoldReport":
        """Read what :meth:`save` wrote into ``folder``."""
        content: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        return cls(**{**content, "output": folder.resolve()})
