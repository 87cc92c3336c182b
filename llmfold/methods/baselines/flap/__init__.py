"""``flap`` and ``flap-uniform``: fluctuation-based pruning with widths of its own, or with those of the plan."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmfold.errors import UsageError
from llmfold.methods.baselines.baseline import MeasuringBaseline
from llmfold.registry import register_method

if TYPE_CHECKING:
    from llmfold.config import FoldConfig
    from llmfold.methods.base import LayerMethod
    from llmfold.models import ModelShape
    from llmfold.planning import FoldPlan


class _Fluctuations(MeasuringBaseline):
    """Keeps units whose inputs vary most, and moves the means of the others into biases."""

    summary = "units whose activations fluctuate most are kept, the means of the others go into biases"
    citation = "An et al., FLAP, AAAI 2024, arXiv 2312.11983"
    options = MeasuringBaseline.options | {"bias"}
    replans = True
    builder = f"{__name__}.pruner:build"
    estimator = f"{__name__}.cost:fluctuation_cost"

    def check_model(self, config: "FoldConfig", shape: "ModelShape") -> None:
        """Biases want a place in the config."""
        from llmfold.methods.baselines.flap.replan import check_biases

        if config.bias:
            check_biases(shape.architecture)

    def replan(self, plan: "FoldPlan", layers: "LayerMethod") -> "FoldPlan":
        """Biases on all projections."""
        from llmfold.methods.baselines.flap.replan import with_biases

        return with_biases(plan, bias=plan.config.bias)


@register_method("flap-uniform")
class FlapUniform(_Fluctuations):
    """Widths of the plan (UL-MM of the paper)."""


@register_method("flap")
class Flap(_Fluctuations):
    """All units of all layers compete (AL-AM of the paper)."""

    own_widths = True

    def check(self, options: Mapping[str, Any]) -> None:
        """Its widths are its own."""
        if options["layers"]:
            raise UsageError("--method flap finds the widths of every layer itself; for a recipe use flap-uniform")
        if options["tensor_parallel"] > 1:
            raise UsageError("--method flap finds widths that no --tensor-parallel divides; use flap-uniform")

    def replan(self, plan: "FoldPlan", layers: "LayerMethod") -> "FoldPlan":
        """Its own widths, then the biases."""
        from llmfold.methods.baselines.flap.pruner import FlapPruner
        from llmfold.methods.baselines.flap.replan import with_own_widths

        if not plan.folded_layers:  # nothing was measured
            return super().replan(plan, layers)
        assert isinstance(layers, FlapPruner)
        return super().replan(with_own_widths(plan, layers.statistics), layers)
