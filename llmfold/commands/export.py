"""``llmfold export gguf``: a checkpoint as the file that llama.cpp reads."""

from typing import Any

from llmfold.commands import Command
from llmfold.commands.parser import finish, print_progress

INTERRUPTED = "interrupted; nothing was left behind"
_EPILOG = """Runs in llama.cpp, Ollama, LM Studio and all that is built on them. It needs the package gguf:
pip install 'llmfold[gguf]'

examples:
  llmfold export gguf --model OUT --output out.gguf
  llmfold export gguf --model OUT --output out-q8.gguf --type q8_0
  llmfold export gguf --model demo --output demo.gguf --pre gpt-2
"""


def add(commands: Any) -> None:
    """Describe the command."""
    from llmfold.export.options import GROUPS, ExportSettings
    from llmfold.options import add_options

    parser = commands.add_parser(
        "export",
        usage="llmfold export gguf --model MODEL --output FILE.gguf [--type TYPE] [--pre NAME] [--overwrite]",
        help="a model as a GGUF file for llama.cpp",
        description="Write a model, folded or not, as a GGUF file for llama.cpp and what is built on it.",
        epilog=_EPILOG,
    )
    parser.add_argument("format", choices=("gguf",), help="the format")
    add_options(parser, ExportSettings, GROUPS)
    finish(parser, Command(run, INTERRUPTED))


def run(options: dict[str, Any]) -> None:
    """Export, and say what was written.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.errors import LlmfoldError
    from llmfold.export.options import ExportSettings

    quiet = options.pop("quiet", False)
    settings = ExportSettings(**{name: value for name, value in options.items() if name not in ("format", "debug")})
    try:
        from llmfold.export.writer import export_gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise LlmfoldError("exporting to GGUF needs the package gguf: pip install 'llmfold[gguf]'") from error

    from llmfold.sizes import human_bytes

    done = export_gguf(settings, (lambda _: None) if quiet else print_progress)
    if not quiet:
        for note in done.notes:
            print(f"note: {note}")
        print(f"written: {done.path} ({human_bytes(done.nbytes)}, {done.architecture}, pre-tokenizer {done.pre})")
        print(f"run it:  llama-cli -m {done.path}")
