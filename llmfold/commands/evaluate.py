"""``llmfold eval``: perplexity of a model, and its fidelity to the dense one."""

from pathlib import Path
from typing import Any

from llmfold.commands.parser import Parser, add_measuring, add_talk

INTERRUPTED = "interrupted"


def build_parser() -> Parser:
    """The parser of ``llmfold eval``."""
    parser = Parser(
        "llmfold eval",
        "llmfold eval --model MODEL [--text FILE] [--against DENSE] [options]",
        "Measure perplexity on a text, and KL and top-1 agreement with the dense model on text of its own.",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument("--model", required=True, help="local folder, hub id, or 'demo'")
    what.add_argument("--against", help="the dense model that it was folded from")
    what.add_argument("--text", help="text file for perplexity, or 'wikitext'")
    what.add_argument("--trust-remote-code", action="store_true", help="run the modelling file that the model carries")
    add_measuring(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    add_talk(parser)
    return parser


def run(options: dict[str, Any]) -> None:
    """Measure, print, and write the JSON file if one is named.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.evaluation.evaluate import evaluate

    quiet, output = options.pop("quiet", False), options.pop("output", None)
    options.pop("debug", None)
    found = evaluate(**options)
    if output is not None:
        found.save(output)
    if quiet:
        return
    if found.perplexity:
        if found.dense:
            print(f"dense perplexity  {found.dense.value:.4f}  ({found.against})")
        print(f"perplexity        {found.perplexity.value:.4f}  ({found.model})")
        print(f"protocol          {found.perplexity.protocol}")
    if found.fidelity:
        print(f"KL to dense       {found.fidelity.kl:.4f} nats per token")
        print(f"top-1 agreement   {found.fidelity.top1:.1%}")
        print(f"fidelity          {found.fidelity_protocol}")
