"""``flap`` and ``flap-uniform``: fluctuation-based pruning with widths of its own, or with those of the plan."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmfold.errors import UsageError
from llmfold.methods.baselines.baseline import MeasuringBaseline
from llmfold.registry import register_method

if TYPE_CHECKING:
    from llmfold.methods.base import LayerMethod
    from llmfold.methods.baselines.flap.pruner import FlapPruner
    from llmfold.methods.source import Setting
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost


class _Fluctuations(MeasuringBaseline):
    """Keeps units whose inputs vary most, and moves the means of the others into biases."""

    summary = "units whose activations fluctuate most are kept, the means of the others go into biases"
    citation = "An et al., FLAP, AAAI 2024, arXiv 2312.11983"
    options = MeasuringBaseline.options | {"bias"}
    replans = True

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """One pass of the dense model with moments."""
        from llmfold.methods.baselines.costs import measured_rows, on_tokens, prune_stage
        from llmfold.planning.cost import Stage, decoder_flops

        passed = decoder_flops(plan.before, *measured_rows(plan))
        measure = Stage("prepare", large=passed, disk=plan.bytes_before)
        return on_tokens(plan, processes, [measure, prune_stage(plan)], streams=1)

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "FlapPruner":
        """See :class:`llmfold.methods.baselines.flap.pruner.FlapPruner`."""
        from llmfold.methods.baselines.flap.pruner import FlapPruner, measure_fluctuations
        from llmfold.methods.baselines.flap.replan import check_biases
        from llmfold.methods.source import token_source
        from llmfold.runtime.hidden_states import STATE_FOLDER, stored_tensors

        bias = setting.config.bias
        if bias:
            check_biases(setting.shape.architecture)
        source = token_source(setting, say)
        statistics = stored_tensors(
            setting.work / STATE_FOLDER / "fluctuations.safetensors",
            lambda: measure_fluctuations(source.on, setting.read_layer, say),
        )
        return FlapPruner(setting.shape, setting.device, statistics, source.facts, bias=bias)

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

        assert isinstance(layers, FlapPruner)
        return super().replan(with_own_widths(plan, layers.statistics), layers)
