"""What pruning baselines have in common as methods; what they have in common as pruners is in ``pruner``."""

from typing import TYPE_CHECKING

from llmfold.methods.method import Method

if TYPE_CHECKING:
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost


class Baseline(Method):
    """Cuts units and repairs nothing; needs no data by default."""

    folds = False

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """Every weight is looked at once or twice."""
        from llmfold.methods.baselines.costs import data_free_cost

        return data_free_cost(plan)


class MeasuringBaseline(Baseline):
    """Measures on tokens of a text, or of the model's own."""

    needs_data = True
    options = frozenset(("num_samples", "sequence_length", "effort"))
