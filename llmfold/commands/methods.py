"""``llmfold methods``: what there is to choose from."""

import textwrap
from typing import Any

from llmfold.commands import Command
from llmfold.commands.parser import finish
from llmfold.registry import MethodFacts


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "methods",
        help="list the methods of folding and pruning",
        description="List the methods, what each needs, and which options only it uses.",
    )
    finish(parser, Command(run))


def run(options: dict[str, Any]) -> None:
    """Print the methods."""
    from llmfold.registry import methods

    for name, method in methods().items():
        print(name)
        for line in describe(method):
            print(textwrap.indent(textwrap.fill(line, 96), "    "))


def describe(method: MethodFacts) -> list[str]:
    """What is known of a method, a line each."""
    from llmfold.config import FoldConfig
    from llmfold.options import options_of, spelled

    data = "--data TEXT" if method.needs_data else "text that the model writes itself" if method.samples else "none"
    lines = [method.summary, f"data: {data}"]
    if method.options:
        flags = (spelled(field) for field, _ in options_of(FoldConfig) if field.name in method.options)
        lines.append(f"options: {', '.join(flags)}")
    return [*lines, *([method.citation] if method.citation else [])]
