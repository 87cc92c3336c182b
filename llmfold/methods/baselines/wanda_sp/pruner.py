"""Wanda-sp: Wanda's metric on coupled structures.

Wanda (Sun et al., ICLR 2024, arXiv 2306.11695, equation 1) scores a weight by ``|W_ij| · ‖X_j‖₂``. The structured
version is a baseline of FLAP (An et al., AAAI 2024, arXiv 2312.11983, experiments): an input feature of down_proj or
o_proj scores the mean over outputs, a head the sum over its features. Layers are pruned in order and scored on the
hidden states that earlier, pruned layers have made.
"""

from typing import Any

import torch
from torch import Tensor

from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.statistics import Moments, consumer_moments
from llmfold.methods.baselines.structures import Units, Weights
from llmfold.methods.baselines.wanda_sp.carried import CarriedStates
from llmfold.methods.dense import Measurement
from llmfold.models import LayerShape, Role
from llmfold.models.forward import decoder_layer
from llmfold.runtime.hidden_states import chunks, read, write


class WandaPruner(Pruner):
    """``--method wanda-sp``. Only the stream of the pruned model is kept; memory is bounded by a layer."""

    def __init__(self, on: Measurement, facts: dict[str, Any]) -> None:
        """Set up; nothing is computed yet.

        Args:
            on: hidden states to measure on.
            facts: what they are, for the report.
        """
        super().__init__(on.shape, on.device, facts)
        self._on = on
        self._carried = CarriedStates(on)

    def start(self, first_layer: int) -> None:
        """Write the first states, or open those that an interrupted run left."""
        self._carried.start(first_layer)

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """Mean of ``|W| · ‖x‖`` over outputs, summed over the features of a head unit."""
        wide = {role: tensor.float() for role, tensor in weights.items()}
        heads, neurons = consumer_moments(self._on, index, wide, layer, self._carried.now, None)
        by_feature = feature_scores(wide["o"], heads).view(layer.head_units, -1)
        return Units(feature_scores(wide["down"], neurons).cpu(), by_feature.sum(1).cpu())

    def finish(self, index: int, weights: Weights, pruned: dict[Role, Tensor], kept: Units) -> dict[Role, Tensor]:
        """Move the stream past the pruned layer."""
        before, after = self._carried.now, self._carried.advance()
        wide = {role: tensor.float() for role, tensor in pruned.items()}
        head_dim = self.shape.head_dim
        layer = LayerShape(len(wide["gate"]), len(wide["q"]) // head_dim, len(wide["k"]) // head_dim)
        for part in chunks(self._on.size[0]):
            x = read(before, part, self.device)
            write(after, part, decoder_layer(x, wide, layer, self._on.stream.context, index))
        return pruned

    def flush(self) -> None:
        """Put the states after the layer on disk."""
        self._carried.flush()

    def committed(self) -> None:
        """Forget the states before the layer."""
        self._carried.committed()


def feature_scores(weight: Tensor, inputs: Moments) -> Tensor:
    """(m,) mean over outputs of ``|W_ij| · ‖X_j‖₂`` for an (outputs, m) weight."""
    return weight.abs().mean(0, dtype=torch.float64) * inputs.squares.sqrt()
