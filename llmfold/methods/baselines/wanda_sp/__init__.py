"""``wanda-sp``: Wanda's metric over whole structures."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmfold.methods.baselines.baseline import MeasuringBaseline
from llmfold.registry import Parallel, register_method

if TYPE_CHECKING:
    from llmfold.methods.baselines.wanda_sp.pruner import WandaPruner
    from llmfold.methods.source import Setting
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost


@register_method("wanda-sp")
class WandaSp(MeasuringBaseline):
    """Layer after layer on the states of what is pruned already."""

    summary = "units of the largest weight times activation are kept, layer after layer"
    citation = "Sun et al., Wanda, ICLR 2024, arXiv 2306.11695; structured as in An et al., FLAP, arXiv 2312.11983"
    parallel = Parallel.NONE

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """Moments of the dense layer and a pass of the pruned one, layer by layer."""
        from llmfold.methods.baselines.costs import measured_rows, on_tokens
        from llmfold.planning.cost import Stage, decoder_flops

        rows = measured_rows(plan)
        prune = decoder_flops(plan.before, *rows) + decoder_flops(plan.after, *rows)
        return on_tokens(plan, processes, [Stage("prune", large=prune)], streams=2)

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "WandaPruner":
        """See :class:`llmfold.methods.baselines.wanda_sp.pruner.WandaPruner`."""
        from llmfold.methods.baselines.wanda_sp.pruner import WandaPruner
        from llmfold.methods.source import token_source

        source = token_source(setting, say)
        return WandaPruner(source.on, source.facts)
