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

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.statistics import Moments, consumer_moments
from llmfold.methods.baselines.structures import Units, Weights, feature_mask
from llmfold.methods.dense import Measurement
from llmfold.models import LayerShape, ModelShape, Role

_STATES = "dense"
Statistics = Mapping[str, Tensor]
"""By ``LAYER.PART.KIND``: ``metric`` and ``mean`` of the features of ``heads`` and of ``neurons``, float64."""


def fluctuation(weight: Tensor, inputs: Moments) -> Tensor:
    """(m,) variance of each input times the squared norm of its column, for an (outputs, m) weight."""
    return inputs.variance * weight.double().square().sum(0)


@torch.no_grad()
def measure_fluctuations(
    on: Measurement, read_layer: Callable[[int], Weights], say: Callable[[str], None]
) -> dict[str, Tensor]:
    """Metric and mean of all features of all layers in one pass of the dense model, one layer in memory at a time.

    Args:
        on: states to measure on.
        read_layer: tensors of a layer by role.
        say: told of every layer.
    """
    states = on.first_states(_STATES)
    found = {}
    for index, layer in enumerate(on.shape.layers):
        say(f"layer {index}: fluctuations")
        weights = {role: tensor.to(on.device, torch.float32) for role, tensor in read_layer(index).items()}
        heads, neurons = consumer_moments(on, index, weights, layer, states, states)
        for part, moments, weight in (("heads", heads, weights["o"]), ("neurons", neurons, weights["down"])):
            found[f"{index}.{part}.metric"] = fluctuation(weight, moments).cpu()
            found[f"{index}.{part}.mean"] = moments.mean.cpu()
    on.path(_STATES).unlink()
    return found


def standardised_scores(statistics: Statistics, index: int, layer: LayerShape) -> Units:
    """Scores that compete across layers and parts: standardised within the layer, averaged over a head's features."""
    heads = _standardise(statistics[f"{index}.heads.metric"].square())
    neurons = _standardise(statistics[f"{index}.neurons.metric"])
    return Units(neurons, heads.view(layer.head_units, -1).mean(1))


def _standardise(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp_min(torch.finfo(values.dtype).tiny)


class FlapPruner(Pruner):
    """Cuts by measured fluctuations; widths are those of the plan, uniform or adaptive."""

    def __init__(
        self, shape: ModelShape, device: torch.device, statistics: Statistics, facts: dict[str, Any], *, bias: bool
    ) -> None:
        """Set up.

        Args:
            shape: of the model read.
            device: where to compute.
            statistics: of all layers, see :func:`measure_fluctuations`.
            facts: data used, for the report.
            bias: compensate what is removed by biases; the written config must hold a bias on every projection.
        """
        super().__init__(shape, device, facts)
        self.statistics, self.bias = statistics, bias

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """The metric of neurons, and the sum of the squared metric over the features of each head unit."""
        heads = self.statistics[f"{index}.heads.metric"].square().view(layer.head_units, -1).sum(1)
        return Units(self.statistics[f"{index}.neurons.metric"], heads)

    def finish(self, index: int, weights: Weights, pruned: dict[Role, Tensor], kept: Units) -> dict[Role, Tensor]:
        """Add the biases: the removed features' mean output, and zeros on all other projections."""
        if not self.bias:
            return pruned
        before = self.shape.layers[index]
        units = before.head_units
        for role, part, removed in (
            ("o", "heads", feature_mask(kept.heads, units, before.heads * self.shape.head_dim // units)),
            ("down", "neurons", feature_mask(kept.neurons, before.intermediate, 1)),
        ):
            mean = self.statistics[f"{index}.{part}.mean"] * removed
            weight = weights[role]
            bias = weight.double() @ mean.to(weight.device)
            if role + "_bias" in weights:
                bias += weights[role + "_bias"].double()
            pruned[role + "_bias"] = bias.to(weight.dtype)
        for role in ("q", "k", "v", "gate", "up"):
            if role + "_bias" not in pruned:
                pruned[role + "_bias"] = pruned[role].new_zeros(len(pruned[role]))
        return pruned
