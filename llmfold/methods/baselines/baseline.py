"""What pruning baselines have in common as methods; what they have in common as pruners is in ``pruner``."""

from llmfold.methods.method import Method


class Baseline(Method):
    """Cuts units and repairs nothing; needs no data by default."""

    folds = False
    estimator = "llmfold.methods.baselines.costs:data_free_cost"


class MeasuringBaseline(Baseline):
    """Measures on tokens of a text, or of the model's own."""

    needs_data = True
    options = frozenset(("num_samples", "sequence_length", "effort"))
