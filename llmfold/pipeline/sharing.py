"""What runs of several ratios share."""

from pathlib import Path

import numpy as np
import torch

from llmfold.data.tokens import TOKENS_FILE, stored_tokens
from llmfold.models import ModelShape
from llmfold.planning import Sensitivities
from llmfold.planning.sensitivity import SENSITIVITIES_FILE, kept_neurons


def reuse_measurements(work: Path, finished: Path, shape: ModelShape, ratio: float) -> None:
    """Bring what a finished fold to a larger ratio has measured on the dense model into a work folder without it."""
    if (finished / TOKENS_FILE).exists():
        tokens = torch.from_numpy(np.load(finished / TOKENS_FILE, allow_pickle=False))
        stored_tokens(work / TOKENS_FILE, lambda: tokens)
    if (finished / SENSITIVITIES_FILE).exists() and not (work / SENSITIVITIES_FILE).exists():
        removed = [layer.intermediate - kept_neurons(layer.intermediate, ratio) for layer in shape.layers]
        Sensitivities.load(finished / SENSITIVITIES_FILE).shortened(removed).save(work / SENSITIVITIES_FILE)
