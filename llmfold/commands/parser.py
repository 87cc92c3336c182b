"""The argument parser of all commands."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from llmfold.commands import Command

TALK = "the run"


class Parser(argparse.ArgumentParser):
    """Complains in one sentence with exit code 2; unset options are absent, and none may be abbreviated."""

    def __init__(self, **options: Any) -> None:
        """See :class:`argparse.ArgumentParser`."""
        super().__init__(
            **options,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; what is not known is named here, before what is missing, with the command whose help tells more."""
        for name in (word.partition("=")[0] for word in args or ()):
            if self._subparsers is None and name.startswith("--") and name not in self._option_string_actions:
                self.error(f"there is no option {name}")
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]} is more than this command takes")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and exit with 2."""
        self.exit(2, f"llmfold: {message} (see {self.prog} --help)\n")


def finish(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add the options of what is printed, which all commands have, and name the command that the parser leads to."""
    talk = next((group for group in parser._action_groups if group.title == TALK), None)
    talk = talk or parser.add_argument_group(TALK)
    talk.add_argument("--quiet", action="store_true", help="print errors only")
    talk.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(command=command)


def print_progress(message: str) -> None:
    """Print what a command is about to do to standard error."""
    print(message, file=sys.stderr, flush=True)
