"""``llm-pruner``: first-order Taylor importance."""

from llmfold.methods.baselines.baseline import MeasuringBaseline
from llmfold.registry import register_method


@register_method("llm-pruner")
class LlmPruner(MeasuringBaseline):
    """Scores units by the gradient of the loss, from one pass forward and one back."""

    summary = "units of the largest weight times gradient are kept"
    citation = "Ma et al., LLM-Pruner, NeurIPS 2023, arXiv 2305.11627"
    builder = f"{__name__}.pruner:build"
    estimator = f"{__name__}.cost:taylor_cost"
