"""``magnitude``: the smallest norm goes first."""

from llmfold.methods.baselines.baseline import Baseline
from llmfold.registry import register_method


@register_method("magnitude")
class Magnitude(Baseline):
    """Keeps units of the largest norm."""

    summary = "units of the largest norm are kept"
    citation = "Ma et al., LLM-Pruner, NeurIPS 2023, arXiv 2305.11627, section 4"
    one_pass = True
    builder = f"{__name__}.pruner:build"
