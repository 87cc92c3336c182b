"""Options said once: a field of a dataclass carries its help and its check.

Command line, recipes, the Python interface and the page of options in the documentation are made from the fields.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfold.errors import UsageError

_KEY = "option"


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


TEXT = Kind(lambda value: isinstance(value, str), "give a text")
ANYTHING = Kind(lambda value: True)
SWITCH = Kind(lambda value: isinstance(value, bool), "give true or false", None)
FRACTION = Kind(
    lambda value: is_number(value) and 0 <= value < 1,
    "it is the fraction to remove and must lie in [0, 1)",
    float,
)


@dataclass(frozen=True)
class Option:
    """What is said of an option beside its name and default, see :func:`option`."""

    help: str
    kind: Kind
    group: str
    aliases: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    const: str | None = None


def option(
    help: str,
    kind: Kind,
    group: str,
    default: Any = dataclasses.MISSING,
    *,
    aliases: tuple[str, ...] = (),
    parse: Callable[[str], Any] | None = None,
    const: str | None = None,
) -> Any:
    """A field of a dataclass that is an option; one whose default is None may be None.

    Args:
        help: what it does, in a sentence without a full stop.
        kind: what values it takes.
        group: heading that it stands under, by a short name.
        default: its value where it is not given.
        aliases: other spellings on the command line.
        parse: reads a word of the command line, where that may say more than one value.
        const: its value where the command line names it without one.
    """
    said = Option(help, kind, group, aliases, parse, const)
    return dataclasses.field(default=default, metadata={_KEY: said})


def flag(name: str) -> str:
    """Spelling of a field on the command line."""
    return "--" + name.replace("_", "-")


def spelled(field: "dataclasses.Field[Any]") -> str:
    """Spelling of the word that changes an option: a switch that is on is turned off."""
    return f"--no-{field.name.replace('_', '-')}" if field.default is True else flag(field.name)


def options_of(cls: Any) -> Iterator[tuple["dataclasses.Field[Any]", Option]]:
    """Fields that are options, in their order."""
    return ((field, field.metadata[_KEY]) for field in dataclasses.fields(cls) if _KEY in field.metadata)


def check_options(values: Any) -> None:
    """Check every option of an instance by itself; raises UsageError that names it."""
    for field, said in options_of(values):
        value = getattr(values, field.name)
        if value is not None or field.default is not None:
            said.kind.check(flag(field.name), value)


def add_options(parser: argparse.ArgumentParser, cls: Any, groups: Mapping[str, str], *, required: bool = True) -> None:
    """Give a parser the options of a class.

    Args:
        parser: whose unset options are to be absent.
        cls: a dataclass.
        groups: headings by their short names; options of other groups are left out.
        required: whether options without a default must be given.
    """
    headings = {name: parser.add_argument_group(heading) for name, heading in groups.items()}
    for field, said in options_of(cls):
        if said.group in headings:
            reading = _reading(field, said)
            if required and field.default is dataclasses.MISSING:
                reading["required"] = True
            headings[said.group].add_argument(
                spelled(field), *said.aliases, dest=field.name, help=_help(field, said), **reading
            )


def _help(field: "dataclasses.Field[Any]", said: Option) -> str:
    plain = field.default in (None, dataclasses.MISSING) or isinstance(field.default, bool)
    return said.help if plain or "default:" in said.help else f"{said.help} (default: {field.default})"


def _reading(field: "dataclasses.Field[Any]", said: Option) -> dict[str, Any]:
    """How argparse reads an option."""
    kind = said.kind
    if kind.parse is None:
        return {"action": "store_false" if field.default is True else "store_true"}
    if kind.choices is not None:
        return {"choices": kind.choices()}
    several = {"nargs": "?", "const": said.const} if said.const is not None else {}
    return {"type": said.parse or kind.parse, **several}


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and no switch."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no switch."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(text: str) -> tuple[float, ...]:
    """Parse ``0.1,0.2``."""
    try:
        return tuple(float(piece) for piece in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor several with commas between") from error


def public_file(name: str) -> str:
    """A local file by its name without folders; anything else, such as a hub data set, as it is."""
    path = Path(name).expanduser()
    return path.name if path.is_file() or name.startswith(("/", ".", "~")) else name
