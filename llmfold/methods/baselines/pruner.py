"""What all pruning baselines share: score the units of a layer, keep the best, cut the others out."""

import time
from typing import Any

import torch
from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import Independent
from llmfold.methods.baselines.structures import Units, Weights, keep_units, top
from llmfold.models import LayerShape, ModelShape, Role


class Pruner(Independent):
    """A pruning baseline behind the interface of a folding method."""

    def __init__(self, shape: ModelShape, device: torch.device, facts: dict[str, Any]) -> None:
        """Set up.

        Args:
            shape: the model's shape.
            device: where to compute.
            facts: data used and the like, for the report.
        """
        self.shape, self.device, self._facts = shape, device, facts

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """Importance of every unit of a layer; its stored tensors are on the device."""
        raise NotImplementedError

    def finish(self, index: int, weights: Weights, pruned: dict[Role, Tensor], kept: Units) -> dict[Role, Tensor]:
        """What is left to do once the units are cut: nothing, unless a baseline compensates or measures on."""
        return pruned

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """Keep the units of the highest scores."""
        begin = time.perf_counter()
        moved = {role: tensor.to(self.device) for role, tensor in weights.items()}
        scores = self.scores(index, moved, before)
        kept = Units(top(scores.neurons, after.intermediate), top(scores.heads, before.units_in(after)))
        pruned = self.finish(index, moved, keep_units(moved, before, kept), kept)
        record = LayerRecord(seconds={"prune": time.perf_counter() - begin})
        if before.intermediate != after.intermediate:
            record.mlp = _describe(scores.neurons, kept.neurons)
        if before.heads != after.heads:
            record.attention = _describe(scores.heads, kept.heads)
        return pruned, record

    def summary(self) -> dict[str, Any]:
        """Data used, for the report."""
        return self._facts


def _describe(scores: Tensor, kept: Tensor) -> dict[str, Any]:
    total = float(scores.sum())
    share = float(scores[kept].sum()) / total if total else 1.0
    return {"before": len(scores), "after": len(kept), "score_kept": share}
