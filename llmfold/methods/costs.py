"""What every method costs, by its name: functions of a plan and of how many processes share the work."""

from collections.abc import Callable

from llmfold.methods.baselines import costs as baselines
from llmfold.methods.merging_cost import merging_cost
from llmfold.methods.reconstruction_cost import population_cost, tokens_cost
from llmfold.planning.cost import Cost
from llmfold.planning.plan import FoldPlan

COSTS: dict[str, Callable[[FoldPlan, int], Cost]] = {
    "self": tokens_cost,
    "calibrated": tokens_cost,
    "weights": population_cost,
    "paper": merging_cost,
    "random": baselines.data_free_cost,
    "magnitude": baselines.data_free_cost,
    "wanda-sp": baselines.wanda_cost,
    "flap": baselines.flap_cost,
    "flap-uniform": baselines.flap_cost,
    "llm-pruner": baselines.llm_pruner_cost,
}
