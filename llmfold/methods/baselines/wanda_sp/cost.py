"""What ``--method wanda-sp`` costs."""

from llmfold.methods.baselines.costs import measured_rows, on_tokens
from llmfold.planning.cost import Cost, Stage, decoder_flops
from llmfold.planning.plan import FoldPlan


def wanda_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Moments of the dense layer and a pass of the pruned one, layer by layer."""
    flops = sum(decoder_flops(shape, *measured_rows(plan)) for shape in (plan.before, plan.after))
    return on_tokens(plan, processes, [Stage("prune", large=flops)], states=2)
