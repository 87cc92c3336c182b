"""``paper``: model folding as published."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmfold.methods.method import Method
from llmfold.registry import register_method

if TYPE_CHECKING:
    from llmfold.methods.paper.merging import Merging
    from llmfold.methods.source import Setting
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost


@register_method("paper")
class Paper(Method):
    """Clusters units by their weights alone and averages each cluster."""

    summary = "similar units clustered and averaged, as published"
    sentence = "Model folding as published: units are clustered by their weights, and every cluster becomes one unit"
    citation = "Wang et al., Forget the Data and Fine-Tuning! Just Fold the Network, ICLR 2025, arXiv 2502.10216"
    options = frozenset(("cluster", "align", "repair"))
    one_pass = True

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """See :mod:`llmfold.methods.paper.cost`."""
        from llmfold.methods.paper.cost import merging_cost

        return merging_cost(plan, processes)

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "Merging":
        """See :class:`llmfold.methods.paper.merging.Merging`."""
        from llmfold.methods.paper.merging import Merging

        return Merging(setting.config, setting.shape, setting.device)
