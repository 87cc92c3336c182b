"""The published method: cluster and merge by the weights alone; layers do not depend on one another."""

from collections.abc import Iterator, Sequence

import torch

from llmfold.folding.layer import LayerRecord, MergeOptions, fold_layer
from llmfold.methods.base import FoldContext, Folded, LayerMethod, Output, Weights
from llmfold.methods.method import Notify
from llmfold.models import LayerShape
from llmfold.models.pieces import Piece
from llmfold.runtime.oom import on_host_instead
from llmfold.runtime.seeding import mixed_seed


class PaperMethod(LayerMethod):
    """``--method paper``, with optional gauge alignment and variance repair."""

    def __init__(self, context: FoldContext) -> None:
        """Set up; the context's config says how units are clustered, aligned and repaired."""
        self._context = context

    def fold_into(
        self, piece: Piece, weights: Weights, before: LayerShape, outputs: Sequence[Output]
    ) -> Iterator[Folded]:
        """Fold a layer or a piece of it, see :func:`llmfold.folding.layer.fold_layer`; outputs share the clustering."""
        target_shapes = [output.layers[piece.layer] for output in outputs]
        if all(before == after for after in target_shapes):
            yield from ((dict(weights), LayerRecord()) for _ in target_shapes)
            return
        config, shape = self._context.config, self._context.shape.of_piece(piece)
        options = MergeOptions(config.cluster, config.alignment, config.repair, mixed_seed(config.seed, piece.layer))

        def begin(device: torch.device) -> tuple[Folded, Iterator[Folded]]:
            moved = {role: tensor.to(device) for role, tensor in weights.items()}
            results = fold_layer(moved, shape, before, target_shapes, options)
            return next(results), results  # the first needs the most memory: all clusters are found with it

        first, others = on_host_instead(begin, self._context.device, f"layer {piece.layer}")
        yield first
        yield from others


def build(context: FoldContext, notify: Notify) -> PaperMethod:
    """See :meth:`llmfold.methods.method.Method.build`."""
    return PaperMethod(context)
