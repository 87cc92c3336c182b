"""Methods by name, and what options, plans and reports must know of one before anything of it is imported.

A method is one class: :func:`register_method` makes it known to the command line, to plans and to reports. Those
of other packages are found by entry points of the group ``llmfold.methods``.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

SHIPPED = "llmfold.methods"
SELF_DATA = "self"
"""What ``--data`` is where the model's own tokens stand in for text."""


class Parallel(Enum):
    """How several processes share the work of a method."""

    LAYERS = "layers"
    """Each folds layers of its own and needs nothing of the others."""
    ROWS = "rows"
    """They share hidden states, which one machine must hold, and fold layers of their own."""
    NONE = "none"
    """What is folded changes the layers after it, so one process does all."""


class MethodFacts:
    """What is known of a method by its name.

    Attributes:
        name: as ``--method`` has it.
        summary: what it does, for lists and reports: ``units chosen by …``.
        sentence: the same in a sentence of a model card, without its full stop.
        citation: paper and arXiv number, where it is published.
        folds: whether units are merged or their loss repaired; else units are cut and it counts as pruning.
        options: of the options that not all methods use, those that change something under this one.
        needs_data: whether ``--data`` says what to measure on.
        samples: whether it measures on tokens that the model writes itself.
        measures: whether it can tell how the ratio is best split between MLPs, heads and layers.
        weighs: whether it chooses units by what they do to predictions, found out for all layers at once.
        replans: whether it may change the plan before the first layer even where the split is given.
        one_pass: whether several ratios are folded in one pass over the layers.
        by_pieces: whether it may be handed the experts of a layer a few at a time; else it gets layers as a whole.
        random: whether another seed may give another result.
        parallel: how processes share its work.
        plain_only: whether it knows only layers of one gated MLP and one attention, each tensor of one role. A method
            that works on couplings folds all.
        own_widths: whether it gives every layer widths of its own.
    """

    name: str = ""
    summary: str = ""
    sentence: str = ""
    citation: str = ""
    folds: bool = True
    options: frozenset[str] = frozenset()
    needs_data: bool = False
    samples: bool = False
    measures: bool = False
    weighs: bool = False
    replans: bool = False
    one_pass: bool = False
    by_pieces: bool = False
    random: bool = False
    parallel: Parallel = Parallel.LAYERS
    plain_only: bool = True
    own_widths: bool = False

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise UsageError where options, by the names of ``FoldConfig``'s fields, cannot be had together."""


_METHODS: dict[str, MethodFacts] = {}
_Class = TypeVar("_Class", bound=type[MethodFacts])


def register_method(name: str) -> Callable[[_Class], _Class]:
    """Make a class known as ``--method NAME``.

    Raises:
        ValueError: another class has the name.
    """

    def add(method: _Class) -> _Class:
        known = _METHODS.get(name)
        if known is not None and type(known).__qualname__ != method.__qualname__:
            raise ValueError(f"there is a method {name!r} already: {type(known).__module__}")
        _METHODS[name] = method()
        _METHODS[name].name = name
        return method

    return add


def methods() -> dict[str, MethodFacts]:
    """All methods: those that fold, then those that prune, each by name."""
    _import_all()
    return dict(sorted(_METHODS.items(), key=lambda item: (not item[1].folds, item[0])))


def names(having: Callable[[MethodFacts], bool] = lambda method: True) -> tuple[str, ...]:
    """Names of the methods for which ``having`` holds."""
    return tuple(name for name, method in methods().items() if having(method))


def users(option: str) -> tuple[str, ...]:
    """Names of the methods that alone use an option; none where it is of use to all."""
    return names(lambda method: option in method.options)


def method_facts(name: str) -> MethodFacts:
    """The method of a name; raises KeyError."""
    return methods()[name]


_imported = False


def _import_all() -> None:
    global _imported
    if _imported:
        return
    _imported = True
    import_module(SHIPPED)
    for entry in entry_points(group=SHIPPED):
        entry.load()
