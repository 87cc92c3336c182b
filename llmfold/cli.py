"""The command line: ``llmfold --model MODEL --ratio 0.2``, and the commands of llmfold/commands by their names."""

import io
import os
import sys
import traceback
from collections.abc import Sequence

from llmfold.commands import Command, compare, doctor, env, evaluate, export, fold, methods, push
from llmfold.commands.parser import Parser

INTERRUPTED = 130
_COMMANDS = (fold, evaluate, compare, export, push, doctor, methods, env)
_EPILOG = """llmfold --model MODEL --ratio 0.2 is short for llmfold fold --model MODEL --ratio 0.2, whose options
llmfold fold --help lists.
"""


def build_parser() -> Parser:
    """The parser of all commands; unset options are absent, so that a recipe can fill them."""
    parser = Parser(
        prog="llmfold",
        description="Make a large language model smaller with no data and no fine-tuning.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for module in _COMMANDS:
        module.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for failures, 2 for usage, 130 for Ctrl-C."""
    from llmfold.errors import LlmfoldError, UsageError
    from llmfold.runtime.launch import world_size

    _show_any_letter()
    try:
        options = vars(build_parser().parse_args(_with_command(sys.argv[1:] if arguments is None else arguments)))
    except SystemExit as stop:
        return int(stop.code or 0)
    if "version" in options:
        from llmfold.version import __version__

        print(f"llmfold {__version__}")
        return 0
    command: Command = options.pop("command")
    debug = options.get("debug", False)
    try:
        if not command.shared and world_size() > 1:
            raise UsageError("only folding is what several processes can share; all else runs in one")
        command.run(options)
    except LlmfoldError as error:
        _complain(error, str(error), debug)
        return error.exit_code
    except KeyboardInterrupt as stop:
        _complain(stop, str(stop) or command.interrupted, debug)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone, which is no failure of the work
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # a person at the prompt gets a sentence, whatever broke
        _complain(error, f"unexpected {type(error).__name__}: {error}; run again with --debug and report it", debug)
        return 1
    return 0


def _with_command(words: Sequence[str]) -> list[str]:
    """The words of a command line whose command is ``fold`` where none stands first."""
    named = bool(words) and (not words[0].startswith("-") or words[0] in ("-h", "--help", "--version"))
    return list(words) if named else ["fold", *words]


def _show_any_letter() -> None:
    """Print a question mark for what the terminal's encoding lacks, rather than end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _complain(error: BaseException, message: str, debug: bool) -> None:
    """Print a message in one line; where several processes run, one of them reports an error."""
    from llmfold.errors import printable
    from llmfold.runtime.launch import should_report

    if not should_report(error):
        return
    if debug:
        traceback.print_exc()
    print(f"llmfold: {printable(' '.join(message.split()))}", file=sys.stderr)
