"""What runs of several ratios share."""

from pathlib import Path

from llmfold.config import FoldConfig
from llmfold.data.tokens import TOKENS_FILE, share_tokens
from llmfold.models import ModelShape
from llmfold.pipeline.depth import Depth
from llmfold.planning import Sensitivities
from llmfold.planning.sensitivity import SENSITIVITIES_FILE, kept_neurons


def reuse_measurements(work: Path, finished: Path, shape: ModelShape, config: FoldConfig) -> None:
    """Bring what a finished fold to a larger ratio has measured on the dense model into a work folder without it.

    Curves that go through what layers lose at the ratio itself are measured for each.
    """
    if (finished / TOKENS_FILE).exists():
        share_tokens(finished, work)
    depth = Depth.load(finished)
    if depth is not None and Depth.load(work) is None:
        depth.save(work)
    of_these_layers = depth is not None or not config.removes_blocks
    shared = config.allocation != "adaptive" and of_these_layers and (finished / SENSITIVITIES_FILE).exists()
    if shared and not (work / SENSITIVITIES_FILE).exists():
        ratio = float(config.ratio or 0.0)
        removed = [layer.intermediate - kept_neurons(layer.intermediate, ratio, shape.grain) for layer in shape.layers]
        Sensitivities.load(finished / SENSITIVITIES_FILE).shortened(removed).save(work / SENSITIVITIES_FILE)
