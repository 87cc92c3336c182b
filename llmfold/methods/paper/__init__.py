"""``paper``: model folding as published."""

from llmfold.methods.method import Method
from llmfold.registry import register_method


@register_method("paper")
class Paper(Method):
    """Clusters units by their weights alone and averages each cluster."""

    summary = "similar units clustered and averaged, as published"
    sentence = "Model folding as published: units are clustered by their weights, and every cluster becomes one unit"
    citation = "Wang et al., Forget the Data and Fine-Tuning! Just Fold the Network, ICLR 2025, arXiv 2502.10216"
    options = frozenset(("cluster", "align", "repair"))
    one_pass = by_pieces = True
    plain_only = False
    builder = f"{__name__}.merging:build"
    estimator = f"{__name__}.cost:merging_cost"
