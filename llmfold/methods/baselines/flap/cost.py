"""What ``--method flap`` and ``flap-uniform`` cost."""

from llmfold.methods.baselines.costs import measured_rows, on_tokens, prune_stage
from llmfold.planning.cost import Cost, Stage, decoder_flops
from llmfold.planning.plan import FoldPlan


def fluctuation_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """One pass of the dense model with moments."""
    measure = Stage("prepare", large=decoder_flops(plan.before, *measured_rows(plan)), disk=plan.bytes_before)
    return on_tokens(plan, processes, [measure, prune_stage(plan)], states=1)
