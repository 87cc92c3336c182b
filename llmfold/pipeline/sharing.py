"""What runs of several ratios, and processes of one run, share."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmfold.data.tokens import TOKENS_FILE, stored
from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import LayerMethod, Weights
from llmfold.methods.merging import Merging
from llmfold.methods.reconstruction import SENSITIVITIES_FILE, kept_neurons
from llmfold.models import LayerShape, ModelShape, Role
from llmfold.planning import Sensitivities


def fold_at(
    method: LayerMethod, index: int, weights: Weights, before: LayerShape, afters: Sequence[LayerShape]
) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
    """Fold one layer to several widths, one result at a time; the published method clusters once for all of them."""
    if isinstance(method, Merging):
        yield from method.fold_at(index, weights, before, afters)
        return
    for after in afters:
        yield method.fold(index, weights, before, after)


def reuse_measurements(work: Path, finished: Path, shape: ModelShape, ratio: float) -> None:
    """Bring what a finished fold to a larger ratio has measured on the dense model into a work folder without it."""
    if (finished / TOKENS_FILE).exists():
        tokens = torch.from_numpy(np.load(finished / TOKENS_FILE, allow_pickle=False))
        stored(work / TOKENS_FILE, lambda: tokens)
    if (finished / SENSITIVITIES_FILE).exists() and not (work / SENSITIVITIES_FILE).exists():
        removed = [layer.intermediate - kept_neurons(layer.intermediate, ratio) for layer in shape.layers]
        Sensitivities.load(finished / SENSITIVITIES_FILE).shortened(removed).save(work / SENSITIVITIES_FILE)
