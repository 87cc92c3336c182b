"""``wanda-sp``: Wanda's metric over whole structures."""

from llmfold.methods.baselines.baseline import MeasuringBaseline
from llmfold.registry import Parallel, register_method


@register_method("wanda-sp")
class WandaSp(MeasuringBaseline):
    """Layer after layer on the states of what is pruned already."""

    summary = "units of the largest weight times activation are kept, layer after layer"
    citation = "Sun et al., Wanda, ICLR 2024, arXiv 2306.11695; structured as in An et al., FLAP, arXiv 2312.11983"
    parallel = Parallel.NONE
    builder = f"{__name__}.pruner:build"
    estimator = f"{__name__}.cost:wanda_cost"
