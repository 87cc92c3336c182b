"""FLAP: fluctuation-based adaptive structured pruning (An et al., AAAI 2024, arXiv 2312.11983).

- Metric (WIFV): the sample variance over tokens of an input feature of down_proj or o_proj in the dense model, times
  the squared norm of its weight column, which is what a constant cannot recover. As in the published code, that of
  attention is squared before it is summed over a head (here: over the heads of a key/value group).
- Structure: ``flap`` is the published AL-AM: all units of all layers compete, see
  :mod:`llmfold.methods.baselines.flap.allocation`; ``flap-uniform`` takes the widths of the plan (UL-MM).
- Baseline bias compensation: the mean of what a removed feature added goes into a bias of the output projection.

The published code estimates mean and variance by a running update per sample that leaves the first sample's variance
out; here they are the moments over all tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmfold.methods.base import FoldContext, Weights
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.statistics import Moments, consumer_moments
from llmfold.methods.baselines.structures import Units, feature_mask, structures_of
from llmfold.methods.method import Notify
from llmfold.methods.source import TokenSource, token_source
from llmfold.models import LayerShape, Role
from llmfold.runtime.hidden_states import stored_tensors

_STATES = "dense"
Statistics = Mapping[str, Tensor]
"""By ``LAYER.PART.KIND``: ``metric`` and ``mean`` of the features of ``heads`` and of ``neurons``, float64."""


def fluctuation(weight: Tensor, inputs: Moments) -> Tensor:
    """(m,) variance of each input times the squared norm of its column, for an (outputs, m) weight."""
    return inputs.variance * weight.double().square().sum(0)


@torch.no_grad()
def measure_fluctuations(context: FoldContext, source: TokenSource, notify: Notify) -> dict[str, Tensor]:
    """Metric and mean of all features of all layers in one pass of the dense model over the tokens of ``source``.

    One layer is in memory at a time. Returns what :data:`Statistics` says, on the CPU.
    """
    measurement = source.measurement
    states = measurement.first_states(_STATES)
    statistics = {}
    for index in range(len(context.shape.layers)):
        notify(f"layer {index}: fluctuations")
        weights = measurement.wide(context.read_layer(index))
        heads, neurons = consumer_moments(measurement, index, weights, states, states)
        couplings = structures_of(context.shape, index)
        for part, moments, coupling in (("heads", heads, couplings.heads), ("neurons", neurons, couplings.neurons)):
            statistics[f"{index}.{part}.metric"] = fluctuation(weights[coupling.reader], moments).cpu()
            statistics[f"{index}.{part}.mean"] = moments.mean.cpu()
    measurement.path(_STATES).unlink()
    return statistics


class FlapPruner(Pruner):
    """Cuts by measured fluctuations; widths are those of the plan, uniform or adaptive.

    With ``config.bias``, what is removed is compensated by biases; the written config must hold one on every
    projection.
    """

    def __init__(self, context: FoldContext, source: TokenSource, statistics: Statistics) -> None:
        """Set up with the statistics of all layers, see :func:`measure_fluctuations`."""
        super().__init__(context, source.facts)
        self.statistics = statistics

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """The metric of neurons, and the sum of the squared metric over the features of each head unit."""
        heads = self.statistics[f"{index}.heads.metric"].square().view(layer.head_units, -1).sum(1)
        return Units(self.statistics[f"{index}.neurons.metric"], heads)

    def finish(self, index: int, weights: Weights, pruned: dict[Role, Tensor], kept: Units) -> dict[Role, Tensor]:
        """Add the biases: the removed features' mean output, and zeros on all other projections."""
        if not self.context.config.bias:
            return pruned
        before = self.shape.layers[index]
        units, couplings = before.head_units, self.structures(index)
        for coupling, part, removed in (
            (couplings.heads, "heads", feature_mask(kept.heads, units, before.heads * self.shape.head_dim // units)),
            (couplings.neurons, "neurons", feature_mask(kept.neurons, before.intermediate, 1)),
        ):
            mean = self.statistics[f"{index}.{part}.mean"] * removed
            weight, name = weights[coupling.reader], f"{coupling.reader}_bias"
            bias = weight.double() @ mean.to(weight.device)
            if name in weights:
                bias += weights[name].double()
            pruned[name] = bias.to(weight.dtype)
        for role in couplings.matrices:
            pruned.setdefault(f"{role}_bias", pruned[role].new_zeros(len(pruned[role])))
        return pruned


def build(context: FoldContext, notify: Notify) -> FlapPruner:
    """See :meth:`llmfold.methods.method.Method.build`."""
    source, path = token_source(context, notify), context.states / "fluctuations.safetensors"
    return FlapPruner(context, source, stored_tensors(path, lambda: measure_fluctuations(context, source, notify)))
