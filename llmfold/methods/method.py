"""A method: facts by name, and the hooks that the pipeline calls."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from llmfold.registry import MethodFacts, method_facts

if TYPE_CHECKING:
    from llmfold.config import FoldConfig
    from llmfold.methods.base import FoldContext, LayerMethod
    from llmfold.methods.reconstruction.blocks import Blocks
    from llmfold.models import ModelShape
    from llmfold.planning import FoldPlan
    from llmfold.planning.cost import Cost

Notify = Callable[[str], None]
"""Told of every stage as it begins, e.g. ``layer 3: measure``."""


class Method(MethodFacts):
    """Base of all methods. It takes no torch: what computes is imported when a hook is called.

    Attributes:
        builder: function behind :meth:`build`, as ``module:name``; a method without one overrides the hook.
        estimator: function behind :meth:`cost`, likewise.
        block_builder: function behind :meth:`blocks`, likewise, of a method that uses ``--depth``.
    """

    builder: str = ""
    block_builder: str = ""
    estimator: str = "llmfold.methods.base:rewriting_cost"

    def check_model(self, config: "FoldConfig", shape: "ModelShape") -> None:
        """Raise UsageError, before any work, where it cannot fold this model by these options."""

    def cost(self, plan: "FoldPlan", processes: int = 1) -> "Cost":
        """What a fold by ``plan`` costs, shared by so many processes; by default each weight is read and written."""
        cost: Cost = resolve_name(self.estimator)(plan, processes)
        return cost

    def build(self, context: "FoldContext", notify: Notify) -> "LayerMethod":
        """Get ready to fold layers; what is sampled or measured is stored in the work folder.

        Args:
            context: the source, and where to work.
            notify: told of every stage.

        Raises:
            LlmfoldError: missing data, unusable tokens.
        """
        layers: LayerMethod = resolve_name(self.builder)(context, notify)
        return layers

    def blocks(self, context: "FoldContext", notify: Notify) -> "Blocks":
        """Get ready to measure whole blocks; arguments and errors as of :meth:`build`."""
        blocks: Blocks = resolve_name(self.block_builder)(context, notify)
        return blocks

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
