"""``magnitude``: the smallest norm goes first."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmfold.methods.baselines.baseline import Baseline
from llmfold.registry import register_method

if TYPE_CHECKING:
    from llmfold.methods.baselines.magnitude.pruner import MagnitudePruner
    from llmfold.methods.source import Setting


@register_method("magnitude")
class Magnitude(Baseline):
    """Keeps units of the largest norm."""

    summary = "units of the largest norm are kept"
    citation = "Ma et al., LLM-Pruner, NeurIPS 2023, arXiv 2305.11627, section 4"
    one_pass = True

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "MagnitudePruner":
        """See :class:`llmfold.methods.baselines.magnitude.pruner.MagnitudePruner`."""
        from llmfold.methods.baselines.magnitude.pruner import MagnitudePruner

        return MagnitudePruner(setting.shape, setting.device)
