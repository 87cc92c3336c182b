"""How close a folded model is to the dense one, as a card tells it: figures side by side, and how they were found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POOR_KL = 0.3
"""Nats per token: the dense model's own text is more than a third less likely, token by token, to the folded model."""
POOR_TOP1 = 2 / 3
"""Top-1 agreement: the likeliest next token is another one more than one time in three."""


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
    def of_fidelity(cls, found: Mapping[str, Any]) -> "Quality":
        """From the ``fidelity`` section of a report: ``kl``, ``top1`` and ``protocol``."""
        protocol = found.get("protocol")
        return cls(found.get("kl"), found.get("top1"), protocols=(protocol,) if protocol else ())

    @property
    def poor(self) -> bool:
        """Whether the folded model strays so far from the dense one that its card warns of it."""
        return (self.kl is not None and not self.kl <= POOR_KL) or (
            self.top1 is not None and not self.top1 >= POOR_TOP1
        )

    def rows(self) -> list[Score]:
        """All measurements, fidelity first."""
        rows = []
        if self.kl is not None:
            rows.append(Score("KL to the dense model, nats per token", "0", f"{self.kl:.4f}"))
        if self.top1 is not None:
            rows.append(Score("top-1 agreement with the dense model", "100 %", f"{self.top1:.1%}".replace("%", " %")))
        return [*rows, *self.scores]
