"""Units drawn at random."""

import torch

from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.structures import Units, Weights
from llmfold.models import LayerShape, ModelShape


class RandomPruner(Pruner):
    """Units drawn at random: the floor under every criterion ("random" of LLM-Pruner, arXiv 2305.11627, section 4)."""

    def __init__(self, shape: ModelShape, device: torch.device, seed: int) -> None:
        """Set up with the seed of the draw."""
        super().__init__(shape, device, {"data": "none"})
        self._seed = seed

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """Uniform draws from the seed and the layer's index, the same on every device."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + index) % 2**63)
        neurons = torch.rand(layer.intermediate, generator=generator, dtype=torch.float64)
        return Units(neurons, torch.rand(layer.head_units, generator=generator, dtype=torch.float64))
