"""What FLAP changes in a plan once it has measured: widths of single layers, and biases on all projections."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from llmfold.checkpoint import TensorSpec
from llmfold.errors import UsageError
from llmfold.methods.baselines.flap.allocation import adaptive_widths, standardised_scores
from llmfold.models import Architecture, read_shape
from llmfold.models.stock_shape import StockShape
from llmfold.planning import FoldPlan, family_of


def with_own_widths(plan: FoldPlan, statistics: Mapping[str, Tensor]) -> FoldPlan:
    """The plan with the widths at which the units of all layers compete."""
    config, before = plan.config, plan.before
    scores = [standardised_scores(statistics, i, layer) for i, layer in enumerate(before.layers)]
    pooled = config.mlp_ratio is None and config.attention_ratio is None
    widths = adaptive_widths(before, plan.after.layers, scores, pooled=pooled, multiple_of=config.multiple_of)
    return dataclasses.replace(plan, after=dataclasses.replace(plan.after, layers=widths))


def with_biases(plan: FoldPlan, *, bias: bool) -> FoldPlan:
    """The plan with tensors in the shapes of its widths, and with a bias on every projection if there are to be any.

    Biases keep the model in its own family, with a modelling file where its config refuses the head count. A new bias
    stands behind its weight and has its dtype.
    """
    after = plan.after
    written_as = family_of(after) if after.uniform and not bias else after.architecture
    if bias:
        assert isinstance(after, StockShape)
        after = read_shape.with_biases(after)
    shapes = after.layer_stored()
    known = {tensor.name for tensor in plan.tensors}
    tensors: list[TensorSpec] = []
    for tensor in plan.tensors:
        tensors.append(dataclasses.replace(tensor, shape=shapes.get(tensor.name, tensor.shape)))
        name = tensor.name.removesuffix("weight") + "bias"
        if name in shapes and name not in known:
            tensors.append(dataclasses.replace(tensor, name=name, shape=shapes[name]))
    return dataclasses.replace(plan, after=after, tensors=tuple(tensors), written_as=written_as)


def check_biases(family: Architecture) -> None:
    """Raise UsageError unless configs of ``family`` can hold a bias on every projection."""
    if not (family.qkv_bias and family.o_bias and family.mlp_bias):
        raise UsageError(
            f"{family.prefix}Config has no place for FLAP's bias compensation; pass --no-bias to run without it"
        )
