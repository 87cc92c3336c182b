"""A method: facts by name, and the hooks that the pipeline calls."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmfold.registry import MethodFacts, method_facts

if TYPE_CHECKING:
    from llmfold.methods.base import LayerMethod
    from llmfold.methods.source import Setting
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost


class Method(MethodFacts):
    """Base of all methods. Hooks import what they need when they are called, so that this module takes no torch."""

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """What a fold by ``plan`` costs; by default each weight is read and written once."""
        from llmfold.planning.cost import Cost, Stage

        return Cost.of([Stage("fold", memory=2.0 * plan.bytes_before)])

    def build(self, setting: "Setting", say: Callable[[str], None]) -> "LayerMethod":
        """Get ready to fold layers; what is sampled or measured is stored in the work folder.

        Args:
            setting: where to work.
            say: told of every stage.

        Raises:
            LlmfoldError: missing data, unusable tokens.
        """
        raise NotImplementedError

    def replan(self, plan: "FoldPlan", layers: "LayerMethod") -> "FoldPlan":
        """The plan as it stands once ``layers``, which :meth:`build` gave, has measured."""
        return plan


def method_of(name: str) -> Method:
    """The method of a name, with its hooks.

    Raises:
        KeyError: there is none.
        TypeError: what is registered has no hooks.
    """
    method = method_facts(name)
    if not isinstance(method, Method):
        raise TypeError(f"{type(method).__module__} registers {name!r}, which is no llmfold.Method")
    return method
