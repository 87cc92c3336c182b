"""``llm-pruner``: first-order Taylor importance."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmfold.methods.baselines.baseline import MeasuringBaseline
from llmfold.registry import register_method

if TYPE_CHECKING:
    from llmfold.methods.baselines.llm_pruner.pruner import TaylorPruner
    from llmfold.methods.source import Setting
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost

_BACK = 3
"""A backward pass through a layer that computes it again, in forward passes."""


@register_method("llm-pruner")
class LlmPruner(MeasuringBaseline):
    """Scores units by the gradient of the loss, from one pass forward and one back."""

    summary = "units of the largest weight times gradient are kept"
    citation = "Ma et al., LLM-Pruner, NeurIPS 2023, arXiv 2305.11627"

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """Forward through the whole model and back, with states of all layers on disk."""
        from llmfold.methods.baselines.costs import measured_rows, on_tokens, prune_stage
        from llmfold.planning.cost import Stage, decoder_flops, head_flops

        tokens, length = measured_rows(plan)
        passes = (1 + _BACK) * decoder_flops(plan.before, tokens, length) + _BACK * head_flops(plan.before, tokens)
        measure = Stage("prepare", large=passes, disk=2 * plan.bytes_before)
        streams = len(plan.before.layers) + 1
        return on_tokens(plan, processes, [measure, prune_stage(plan)], streams=streams, gradients=True)

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "TaylorPruner":
        """See :class:`llmfold.methods.baselines.llm_pruner.pruner.TaylorPruner`."""
        from llmfold.methods.baselines.llm_pruner.pruner import TaylorPruner, taylor_importances
        from llmfold.methods.source import token_source
        from llmfold.runtime.hidden_states import STATE_FOLDER, stored_tensors

        source = token_source(setting, say)
        importances = stored_tensors(
            setting.work / STATE_FOLDER / "importances.safetensors",
            lambda: taylor_importances(source.on, source.tokens, setting.checkpoint, setting.read_layer, say),
        )
        return TaylorPruner(setting.shape, setting.device, importances, source.facts)
