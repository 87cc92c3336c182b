"""Kinds of values that an option takes: which are accepted, and how a word of the command line becomes one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmfold.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """What values an option takes.

    Attributes:
        accepts: whether a value is one of them.
        wanted: what to give instead of one that is not, as the end of a sentence.
        parse: a word of the command line as a value; ``None`` for a switch, which takes no word.
        choices: values by name, where there are only so many.
    """

    accepts: Callable[[Any], bool]
    wanted: str = ""
    parse: Callable[[str], Any] | None = str
    choices: Callable[[], tuple[str, ...]] | None = None

    def check(self, spelled: str, value: Any) -> None:
        """Raise UsageError for a value that is not accepted; ``spelled`` is how a person writes the option."""
        if not self.accepts(value):
            wanted = self.wanted or f"choose from {', '.join(self.choices())}" if self.choices else self.wanted
            raise UsageError(f"{spelled} is {value!r}; {wanted}")


def integer(least: int, below: int | None = None, *, shown: str = "") -> Kind:
    """Whole numbers from ``least`` on, possibly ``below`` a bound that a message shows as ``shown``."""

    def accepts(value: Any) -> bool:
        return is_integer(value) and value >= least and (below is None or value < below)

    wanted = f"give an integer in [{least}, {shown or below})" if below else f"give an integer of at least {least}"
    return Kind(accepts, wanted, int)


def choice(*values: str) -> Kind:
    """One of a few names."""
    return one_of(lambda: values)


def one_of(names: Callable[[], tuple[str, ...]]) -> Kind:
    """One of names that are not known before they are asked for."""
    return Kind(lambda value: value in names(), choices=names)


def number(over: float, most: float) -> Kind:
    """Numbers in (over, most]."""
    return Kind(
        lambda value: is_number(value) and over < value <= most, f"give a number in ({over:g}, {most:g}]", float
    )


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and no switch."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no switch."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def integer_or(*words: str) -> Kind:
    """Whole numbers from 1 on, or one of a few words."""

    def accepts(value: Any) -> bool:
        return value in words if isinstance(value, str) else is_integer(value) and value >= 1

    wanted = f"give {', '.join(words)} or an integer of at least 1"
    return Kind(accepts, wanted, lambda word: int(word) if word.isdecimal() else word)


TEXT = Kind(lambda value: isinstance(value, str), "give a text")
ANYTHING = Kind(lambda value: True)
SWITCH = Kind(lambda value: isinstance(value, bool), "give true or false", None)
FRACTION = Kind(
    lambda value: is_number(value) and 0 <= value < 1,
    "it is the fraction to remove and must lie in [0, 1)",
    float,
)
