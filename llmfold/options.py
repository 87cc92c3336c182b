"""Options, each defined once: a field of a dataclass carries its help and its check.

Command line, recipes, the Python interface and the page of options in the documentation are made from the fields.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmfold.kinds import Kind

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and default, see :func:`option`."""

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
    spec = Option(help, kind, group, aliases, parse, const)
    return dataclasses.field(default=default, metadata={_KEY: spec})


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
    for field, spec in options_of(values):
        value = getattr(values, field.name)
        if value is not None or field.default is not None:
            spec.kind.check(flag(field.name), value)


def add_options(parser: argparse.ArgumentParser, cls: Any, groups: Mapping[str, str], *, required: bool = True) -> None:
    """Give a parser the options of a class.

    Args:
        parser: whose unset options are to be absent.
        cls: a dataclass.
        groups: headings by their short names; options of other groups are left out.
        required: whether options without a default must be given.
    """
    headings = {name: parser.add_argument_group(heading) for name, heading in groups.items()}
    for field, spec in options_of(cls):
        if spec.group in headings:
            reading = _reading(field, spec)
            if required and field.default is dataclasses.MISSING:
                reading["required"] = True
            headings[spec.group].add_argument(
                spelled(field), *spec.aliases, dest=field.name, help=_help(field, spec), **reading
            )


def _help(field: "dataclasses.Field[Any]", spec: Option) -> str:
    plain = field.default in (None, dataclasses.MISSING) or isinstance(field.default, bool)
    return spec.help if plain or "default:" in spec.help else f"{spec.help} (default: {field.default})"


def _reading(field: "dataclasses.Field[Any]", spec: Option) -> dict[str, Any]:
    """How argparse reads an option."""
    kind = spec.kind
    if kind.parse is None:
        return {"action": "store_false" if field.default is True else "store_true"}
    if kind.choices is not None:
        return {"choices": kind.choices()}
    several = {"nargs": "?", "const": spec.const} if spec.const is not None else {}
    return {"type": spec.parse or kind.parse, **several}


def numbers(text: str) -> tuple[float, ...]:
    """Parse ``0.1,0.2``."""
    try:
        return tuple(float(piece) for piece in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor several with commas between") from error


def command_words(
    options: Iterable[tuple["dataclasses.Field[Any]", Option]],
    values: Mapping[str, Any],
    spell: Callable[[str, Any], str] = lambda name, value: str(value),
) -> list[str]:
    """Words of a command line that give ``options`` their ``values``, defaults left out.

    Args:
        options: fields that are options, in the order of the words.
        values: by the names of fields.
        spell: a value as a word, by the name of its field.
    """
    words = []
    for field, _ in options:
        value = values.get(field.name, field.default)
        if isinstance(value, bool) and value != field.default:
            words.append(spelled(field))
        elif value not in (field.default, None):
            words += [flag(field.name), spell(field.name, value)]
    return words


def public_file(name: str) -> str:
    """A local file by its name without folders; anything else, such as a hub data set, as it is."""
    path = os.path.expanduser(name)
    return os.path.basename(path) if os.path.isfile(path) or name.startswith(("/", ".", "~")) else name
