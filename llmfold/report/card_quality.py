"""How close a folded model is to the dense one, as a card tells it: figures side by side, and how they were found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmfold.evaluation.fidelity import POOR
from llmfold.evaluation.scores import Evaluation
from llmfold.report.scoreboard import notes, score_rows, speed_rows


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
        """From the quality that a report holds, empty where nothing was measured."""
        if not found:
            return cls()
        evaluation = Evaluation.from_dict(found)
        close = evaluation.fidelity
        rows = [*score_rows(evaluation), *speed_rows(evaluation)[1:]]
        return cls(
            close.kl if close else None,
            close.top1 if close else None,
            tuple(Score(*row[:3]) for row in rows),
            tuple(notes(evaluation)),
        )

    @property
    def poor(self) -> bool:
        """Whether the folded model strays so far from the dense one that its card warns of it."""
        return self.top1 is not None and not self.top1 >= POOR

    def rows(self) -> list[Score]:
        """All measurements, fidelity first."""
        rows = []
        if self.kl is not None:
            rows.append(Score("KL to the dense model, nats per token", "0", f"{self.kl:.4f}"))
        if self.top1 is not None:
            rows.append(Score("top-1 agreement with the dense model", "100 %", f"{100 * self.top1:.1f} %"))
        return [*rows, *self.scores]
