"""Wanda-sp: Wanda's metric on coupled structures.

Wanda (Sun et al., ICLR 2024, arXiv 2306.11695, equation 1) scores a weight by ``|W_ij| · ‖X_j‖₂``. The structured
version is a baseline of FLAP (An et al., AAAI 2024, arXiv 2312.11983, experiments): an input feature of down_proj or
o_proj scores the mean over outputs, a head the sum over its features. Layers are pruned in order and scored on the
hidden states that earlier, pruned layers have made.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmfold.methods.base import FoldContext, Output, Weights
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.statistics import Moments, consumer_moments
from llmfold.methods.baselines.structures import Units
from llmfold.methods.method import Notify
from llmfold.methods.source import TokenSource, token_source
from llmfold.models import LayerShape, Role
from llmfold.runtime.hidden_states import chunks, read, write
from llmfold.runtime.storage import fsync_path


class WandaPruner(Pruner):
    """``--method wanda-sp``. Hidden states of the pruned model are carried along; memory is bounded by a layer.

    Those after a layer take the place of those before it once the layer is journalled, so that an interrupted run
    finds them.
    """

    def __init__(self, context: FoldContext, source: TokenSource) -> None:
        """Set up with tokens to measure on; nothing is computed yet."""
        super().__init__(context, source.facts)
        self._measurement = source.measurement
        self._index = 0
        self._before: np.memmap | None = None
        self._after: np.memmap | None = None

    def start(self, first_layer: int, outputs: Sequence[Output]) -> None:
        """Write the first states, or open those that an interrupted run left."""
        self._index, name = first_layer, _name(first_layer)
        measurement = self._measurement
        self._before = measurement.states(name, create=False) if first_layer else measurement.first_states(name)

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """Mean of ``|W| · ‖x‖`` over outputs, summed over the features of a head unit."""
        assert self._before is not None
        wide = self._measurement.wide(weights)
        heads, neurons = consumer_moments(self._measurement, index, wide, self._before, None)
        readers = self.structures(index)
        by_feature = feature_scores(wide[readers.heads.reader], heads).view(layer.head_units, -1)
        return Units(feature_scores(wide[readers.neurons.reader], neurons).cpu(), by_feature.sum(1).cpu())

    def finish(self, index: int, weights: Weights, pruned: dict[Role, Tensor], kept: Units) -> dict[Role, Tensor]:
        """Carry the hidden states past the pruned layer."""
        assert self._before is not None
        self._after = self._measurement.states(_name(index + 1), create=True)
        wide = self._measurement.wide(pruned)
        layer = self.shape.layers[index].with_units(len(kept.neurons), len(kept.heads))
        for part in chunks(self._measurement.size[0]):
            x = read(self._before, part, self.context.device)
            write(self._after, part, self._measurement.context.layer(x, wide, index, layer))
        return pruned

    def sync_state(self) -> None:
        """Put the states after the layer on disk."""
        assert self._after is not None
        self._after.flush()
        fsync_path(self._measurement.path(_name(self._index + 1)).parent)

    def on_committed(self) -> None:
        """Forget the states before the layer."""
        self._measurement.path(_name(self._index)).unlink()
        self._before, self._index = self._after, self._index + 1


def build(context: FoldContext, notify: Notify) -> WandaPruner:
    """See :meth:`llmfold.methods.method.Method.build`."""
    return WandaPruner(context, token_source(context, notify))


def feature_scores(weight: Tensor, inputs: Moments) -> Tensor:
    """(m,) mean over outputs of ``|W_ij| · ‖X_j‖₂`` for an (outputs, m) weight."""
    return weight.abs().mean(0, dtype=torch.float64) * inputs.squares.sqrt()


def _name(index: int) -> str:
    return f"pruned-{index:05d}"
