"""``random``: the floor under every criterion."""

from llmfold.methods.baselines.baseline import Baseline
from llmfold.registry import register_method


@register_method("random")
class Random(Baseline):
    """Keeps units drawn at random."""

    summary = "units drawn at random are kept"
    citation = "Ma et al., LLM-Pruner, NeurIPS 2023, arXiv 2305.11627, section 4"
    one_pass = random = True
    builder = f"{__name__}.pruner:build"
