"""Units drawn at random."""

import torch

from llmfold.methods.base import FoldContext, Weights
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.structures import Units
from llmfold.methods.method import Notify
from llmfold.models import LayerShape
from llmfold.runtime.seeding import seeded


class RandomPruner(Pruner):
    """Units drawn at random: the floor under every criterion ("random" of LLM-Pruner, arXiv 2305.11627, section 4)."""

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """Uniform draws from the seed and the layer's index, the same on every device."""
        generator = seeded(self.context.config.seed, index)
        neurons = torch.rand(layer.intermediate, generator=generator, dtype=torch.float64)
        return Units(neurons, torch.rand(layer.head_units, generator=generator, dtype=torch.float64))


def build(context: FoldContext, notify: Notify) -> RandomPruner:
    """See :meth:`llmfold.methods.method.Method.build`."""
    return RandomPruner(context)
