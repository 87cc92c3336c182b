"""``llmfold push``: a finished output to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from llmfold.commands import Command
from llmfold.commands.parser import finish

INTERRUPTED = "interrupted; run the same command again to go on, what has arrived is kept"
_EPILOG = """The token is the one of `hf auth login`, or HF_TOKEN. A push that broke off goes on when it is run again.

examples:
  llmfold push llama-7b-folded-0.2 me/llama-5b
  llmfold push llama-7b-folded-0.2 me/llama-5b --private --revision ratio-0.2
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "push",
        usage="llmfold push OUT USER/NAME [--private] [--revision BRANCH]",
        help="a finished output to the Hugging Face hub",
        description="Push a finished output of llmfold to the Hugging Face hub, model card and all.",
        epilog=_EPILOG,
    )
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder that a fold has written")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; created if it does not exist")
    finish(parser, Command(run, INTERRUPTED))


def run(options: dict[str, Any]) -> None:
    """Push, and print the address unless told to be quiet.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.hub.push import Target, push

    quiet = options.get("quiet", False)
    target = Target(options["repo_id"], options.get("private"), options.get("revision"))
    address = push(options["folder"].expanduser(), target, quiet=quiet)
    if not quiet:
        print(address)
