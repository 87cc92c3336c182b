"""What pruning baselines cost."""

from llmfold.data.tokens import token_budget
from llmfold.methods.sampling_cost import with_sampling
from llmfold.planning.cost import Cost, Stage
from llmfold.planning.plan import FoldPlan
from llmfold.runtime.hidden_states import CHUNK


def data_free_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of a look at every weight."""
    return Cost.of([prune_stage(plan)])


def prune_stage(plan: FoldPlan) -> Stage:
    """Every weight is looked at once or twice."""
    return Stage("prune", memory=2.0 * plan.bytes_before)


def measured_rows(plan: FoldPlan) -> tuple[int, int]:
    """Tokens that are measured on, and the length of their sequences."""
    budget = token_budget(plan.config, plan.before)
    return budget.sequences * budget.length, budget.length


def on_tokens(plan: FoldPlan, processes: int, stages: list[Stage], *, states: int, gradients: bool = False) -> Cost:
    """Cost of stages that measure on tokens, with sampling them where they are sampled.

    Args:
        plan: widths before and after.
        processes: how many share the work.
        stages: in their order.
        states: hidden states of all tokens that wait on disk at once.
        gradients: whether a layer's gradients are held too.
    """
    (tokens, length), shape = measured_rows(plan), plan.before
    widest = max(3 * layer.intermediate + 4 * layer.heads * shape.head_dim for layer in shape.layers)
    area = 4 * CHUNK * length * (widest + 4 * shape.hidden)
    area = (3 if gradients else 1) * (area + 4 * max(map(shape.layer_parameters, shape.layers)))
    disk = states * 4 * tokens * shape.hidden
    cost = Cost.of(stages, work_area=area, states=disk, tokens=tokens, length=length)
    return with_sampling(cost, plan, token_budget(plan.config, shape), processes)
