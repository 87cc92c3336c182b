"""``random``: the floor under every criterion."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmfold.methods.baselines.baseline import Baseline
from llmfold.registry import register_method

if TYPE_CHECKING:
    from llmfold.methods.baselines.random.pruner import RandomPruner
    from llmfold.methods.source import Setting


@register_method("random")
class Random(Baseline):
    """Keeps units drawn at random."""

    summary = "units drawn at random are kept"
    citation = "Ma et al., LLM-Pruner, NeurIPS 2023, arXiv 2305.11627, section 4"
    one_pass = random = True

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "RandomPruner":
        """See :class:`llmfold.methods.baselines.random.pruner.RandomPruner`."""
        from llmfold.methods.baselines.random.pruner import RandomPruner

        return RandomPruner(setting.shape, setting.device, setting.config.seed)
