"""The published method: cluster and merge by the weights alone; layers do not depend on one another."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.folding.layer import LayerRecord, MergeOptions, fold_layer
from llmfold.methods.base import Independent, Weights
from llmfold.models import LayerShape, ModelShape, Role
from llmfold.runtime.oom import on_host_instead

_Result = tuple[dict[Role, Tensor], LayerRecord]


class Merging(Independent):
    """``--method paper``, with optional gauge alignment and variance repair."""

    def __init__(self, config: FoldConfig, shape: ModelShape, device: torch.device) -> None:
        self._config, self._shape, self._device = config, shape, device

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """See :func:`llmfold.folding.layer.fold_layer`."""
        return next(self.fold_at(index, weights, before, [after]))

    def fold_at(
        self, index: int, weights: Weights, before: LayerShape, afters: Sequence[LayerShape]
    ) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
        """:meth:`fold` to several widths, which share the clustering."""
        if all(before == after for after in afters):
            yield from ((dict(weights), LayerRecord()) for _ in afters)
            return
        config = self._config
        seed = (config.seed * 1_000_003 + index) % 2**63
        options = MergeOptions(config.cluster, config.alignment, config.repair, seed)

        def begin(device: torch.device) -> tuple[_Result, Iterator[_Result]]:
            moved = {role: tensor.to(device) for role, tensor in weights.items()}
            results = fold_layer(moved, self._shape, before, afters, options)
            return next(results), results  # the first needs the most memory: all clusters are found with it

        first, others = on_host_instead(begin, self._device, f"layer {index}")
        yield first
        yield from others
