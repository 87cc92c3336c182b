"""What all pruning baselines share: score the units of a layer, keep the best, cut the others out."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import FoldContext, Folded, LayerMethod, Weights
from llmfold.methods.baselines.structures import Structures, Units, keep_units, structures_of, top
from llmfold.models import LayerShape, Role

_NO_DATA = {"data": "none"}


class Pruner(LayerMethod):
    """A pruning baseline behind the interface of a folding method."""

    def __init__(self, context: FoldContext, facts: Mapping[str, Any] = _NO_DATA) -> None:
        """Set up.

        Args:
            context: the source, and where to work.
            facts: data used and the like, for the report.
        """
        self.context, self.shape, self._facts = context, context.shape, facts

    def structures(self, index: int) -> Structures:
        """The couplings of a layer."""
        return structures_of(self.shape, index)

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """Importance of every unit of a layer; its stored tensors are on the device."""
        raise NotImplementedError

    def finish(self, index: int, weights: Weights, pruned: dict[Role, Tensor], kept: Units) -> dict[Role, Tensor]:
        """What is left to do once the units are cut: nothing, unless a baseline compensates or measures on."""
        return pruned

    def fold(self, index: int, weights: Weights, before: LayerShape, after: LayerShape) -> Folded:
        """Keep the units of the highest scores."""
        begin = time.perf_counter()
        moved = {role: tensor.to(self.context.device) for role, tensor in weights.items()}
        scores = self.scores(index, moved, before)
        kept = Units(top(scores.neurons, after.intermediate), top(scores.heads, before.units_in(after)))
        pruned = self.finish(index, moved, keep_units(moved, self.structures(index), before, kept), kept)
        record = LayerRecord(seconds={"prune": time.perf_counter() - begin})
        if before.intermediate != after.intermediate:
            record.mlp = _describe(scores.neurons, kept.neurons)
        if before.heads != after.heads:
            record.attention = _describe(scores.heads, kept.heads)
        return pruned, record

    def data_facts(self) -> dict[str, Any]:
        """Data used, for the report."""
        return dict(self._facts)


def _describe(scores: Tensor, kept: Tensor) -> dict[str, Any]:
    total = float(scores.sum())
    share = float(scores[kept].sum()) / total if total else 1.0
    return {"before": len(scores), "after": len(kept), "score_kept": share}
