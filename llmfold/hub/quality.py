"""How close a folded model is to the dense one, as a card tells it: figures side by side, and how they were found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

POOR_TOP1 = 0.5
"""Top-1 agreement below which a card warns: the likeliest next token is another one more often than not."""


@dataclass(frozen=True)
class Score:
    """One line of a table: what was measured on the dense and on the folded model, in words."""

    name: str
    dense: str
    folded: str


@dataclass(frozen=True)
class Quality:
    """What is known of a folded model's quality.

    Attributes:
        kl: mean KL(dense || folded) per token in nats; None if it was not measured.
        top1: fraction of tokens where both find the same token most likely; None if it was not measured.
        scores: any further measurements.
        protocols: how all this was measured, one sentence each.
    """

    kl: float | None = None
    top1: float | None = None
    scores: tuple[Score, ...] = ()
    protocols: tuple[str, ...] = ()

    @classmethod
    def of_evaluation(cls, found: Mapping[str, Any]) -> "Quality":
        """From an evaluation as plain data, empty where there was none.

        Args:
            found: ``fidelity`` with ``kl`` and ``top1``, ``fidelity_protocol``, for ``model`` and ``dense`` alike
                ``perplexity`` with ``value`` and ``protocol`` and ``tasks`` by name with ``metrics``, ``speed``; all
                optional.
        """
        fidelity, model, dense = (found.get(key) or {} for key in ("fidelity", "model", "dense"))
        speed = found.get("speed") or {}
        protocols = (
            *(found.get("fidelity_protocol"), (model.get("perplexity") or {}).get("protocol"), *_data(model)),
            *(speed.get("verdict"), speed.get("protocol")),
        )
        return cls(
            fidelity.get("kl"),
            fidelity.get("top1"),
            (*_scores(model, dense), *_speeds(speed)),
            tuple(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in protocols if text),
        )

    @property
    def poor(self) -> bool:
        """Whether the folded model strays so far from the dense one that its card warns of it."""
        return self.top1 is not None and not self.top1 >= POOR_TOP1

    def rows(self) -> list[Score]:
        """All measurements, fidelity first."""
        rows = []
        if self.kl is not None:
            rows.append(Score("KL to the dense model, nats per token", "0", f"{self.kl:.4f}"))
        if self.top1 is not None:
            rows.append(Score("top-1 agreement with the dense model", "100 %", f"{100 * self.top1:.1f} %"))
        return [*rows, *self.scores]


def _scores(model: Mapping[str, Any], dense: Mapping[str, Any]) -> Iterator[Score]:
    """Perplexity, then every metric of every task."""
    if model.get("perplexity"):
        before = dense.get("perplexity")
        yield Score("perplexity", f"{before['value']:.2f}" if before else "–", f"{model['perplexity']['value']:.2f}")
    for task, found in (model.get("tasks") or {}).items():
        before = (dense.get("tasks") or {}).get(task) or {}
        for metric, value in found["metrics"].items():
            yield Score(f"{task}, {metric}", _estimate(before.get("metrics", {}).get(metric)), _estimate(value))


def _speeds(speed: Mapping[str, Any]) -> Iterator[Score]:
    """What was gained in time and space."""
    units = {
        "prefill": ("prefill, tokens per second", 1.0),
        "decode": ("decode, tokens per second", 1.0),
        "peak_memory_bytes": ("peak memory, MB", 1e6),
        "disk_bytes": ("weights on disk, MB", 1e6),
    }
    for key, (name, unit) in units.items() if speed else ():
        yield Score(name, f"{speed['dense'][key] / unit:,.1f}", f"{speed['model'][key] / unit:,.1f}")


def _estimate(found: Any) -> str:
    """A value with its standard error, if it has one."""
    if found is None:
        return "–"
    value, error = found
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _data(model: Mapping[str, Any]) -> list[str]:
    """How every task was run, in words."""
    tasks = (model.get("tasks") or {}).items()
    return [
        f"{name}: {task['documents']:,} documents of {task['data']}, {task['shots']} shots, version {task['version']}"
        for name, task in tasks
    ]
