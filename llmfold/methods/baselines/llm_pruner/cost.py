"""What ``--method llm-pruner`` costs."""

from llmfold.methods.baselines.costs import measured_rows, on_tokens, prune_stage
from llmfold.planning.cost import Cost, Stage, decoder_flops, head_flops
from llmfold.planning.plan import FoldPlan

_BACK = 3
"""A backward pass through a layer that computes it again, in forward passes."""


def taylor_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Forward through the whole model and back, with states of all layers on disk."""
    tokens, length = measured_rows(plan)
    flops = (1 + _BACK) * decoder_flops(plan.before, tokens, length) + _BACK * head_flops(plan.before, tokens)
    stages = [Stage("prepare", large=flops, disk=2 * plan.bytes_before), prune_stage(plan)]
    return on_tokens(plan, processes, stages, states=len(plan.before.layers) + 1, gradients=True)
