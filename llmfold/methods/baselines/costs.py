"""What the pruning baselines cost."""

from llmfold.data.tokens import token_budget
from llmfold.methods.sampling_cost import with_sampling
from llmfold.planning.cost import Cost, Stage, decoder_flops, head_flops
from llmfold.planning.plan import FoldPlan
from llmfold.runtime.hidden_states import CHUNK

_BACK = 3
"""A backward pass through a layer that computes it again, in forward passes."""


def data_free_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of ``random`` and ``magnitude``: every weight is looked at once or twice."""
    return Cost.of([Stage("prune", memory=2.0 * plan.bytes_before)])


def wanda_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of ``wanda-sp``: moments of the dense layer and a pass of the pruned one, layer by layer."""
    tokens, length = _rows(plan)
    prune = decoder_flops(plan.before, tokens, length) + decoder_flops(plan.after, tokens, length)
    return _on_tokens(plan, processes, [Stage("prune", large=prune)], streams=2)


def flap_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of ``flap`` and ``flap-uniform``: one pass of the dense model with moments."""
    tokens, length = _rows(plan)
    measure = Stage("prepare", large=decoder_flops(plan.before, tokens, length), disk=plan.bytes_before)
    return _on_tokens(plan, processes, [measure, Stage("prune", memory=2.0 * plan.bytes_before)], streams=1)


def llm_pruner_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of ``llm-pruner``: forward through the whole model and back, with states of all layers on disk."""
    tokens, length = _rows(plan)
    passes = (1 + _BACK) * decoder_flops(plan.before, tokens, length) + _BACK * head_flops(plan.before, tokens)
    streams = len(plan.before.layers) + 1
    measure = Stage("prepare", large=passes, disk=2 * plan.bytes_before)
    return _on_tokens(plan, processes, [measure, Stage("prune", memory=2.0 * plan.bytes_before)], streams=streams)


def _rows(plan: FoldPlan) -> tuple[int, int]:
    budget = token_budget(plan.config, plan.before)
    return budget.sequences * budget.length, budget.length


def _on_tokens(plan: FoldPlan, processes: int, stages: list[Stage], streams: int) -> Cost:
    budget, shape = token_budget(plan.config, plan.before), plan.before
    widest = max(3 * layer.intermediate + 4 * layer.heads * shape.head_dim for layer in shape.layers)
    area = 4 * CHUNK * budget.length * (widest + 4 * shape.hidden)
    gradients = 3 if plan.config.method == "llm-pruner" else 1
    area = gradients * (area + 4 * max(map(shape.layer_parameters, shape.layers)))
    states = streams * 4 * budget.sequences * budget.length * shape.hidden
    rows = {"tokens": budget.sequences * budget.length, "length": budget.length}
    cost = Cost.of(stages, work_area=area, states=states, **rows)
    return with_sampling(cost, plan, budget, processes)
