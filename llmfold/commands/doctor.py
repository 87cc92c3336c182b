"""``llmfold doctor``: which engines load a folder, and why not."""

import argparse
from pathlib import Path
from typing import Any

from llmfold.commands import Command
from llmfold.commands.parser import finish

_EPILOG = """Verdicts come from config.json, tokenizer_config.json and headers of weights, by rules that are checked
against the engines themselves; no engine is run, and none need be installed.

examples:
  llmfold doctor llama-7b-folded-0.2
  llmfold doctor OUT --json
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "doctor",
        usage="llmfold doctor FOLDER [--json]",
        help="which engines load a folder, and why not",
        description="Say of every engine whether it loads a folder, as it is or with a flag, or why it does not.",
        epilog=_EPILOG,
    )
    parser.add_argument("folder", type=Path, help="an output of llmfold, or any folder of a model")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON", default=argparse.SUPPRESS)
    finish(parser, Command(run))


def run(options: dict[str, Any]) -> None:
    """Print a line for every engine.

    Raises:
        UsageError: the model is for images, of which the rules know nothing.
        CheckpointError: it is no folder of a model, or a file of it cannot be read.
    """
    from llmfold.engines import read_facts, verdicts  # reads its lists, which other commands need not
    from llmfold.errors import UsageError
    from llmfold.images.kind import image_class

    facts = read_facts(options["folder"])
    name = image_class(facts.config)
    if name is not None:
        raise UsageError(f"doctor knows engines of language models, and {options['folder']} holds a {name}")
    found = verdicts(facts)
    if "json" in options:
        import dataclasses
        import json

        print(json.dumps({key: dataclasses.asdict(verdict) for key, verdict in found.items()}, indent=2))
        return
    if options.get("quiet"):
        return
    from llmfold.report.console import print_table
    from llmfold.report.engine_table import engine_table

    print_table(engine_table(found))
