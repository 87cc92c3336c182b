"""``llmfold eval``: perplexity, zero-shot accuracy, fidelity and speed of a model."""

import argparse
from pathlib import Path
from typing import Any

from llmfold.commands.parser import Parser, add_measuring, add_talk, tell

INTERRUPTED = "interrupted; with --output, the same command goes on after the last finished task"
_EPILOG = """tasks, with commas between:
  wikitext2   perplexity as the papers measure it (needs no --against)
  folding     boolq, winogrande, arc_easy, arc_challenge: the tasks of the model folding paper
  speed       prefill and decode beside the dense model
  NAME        any task of lm-eval, zero-shot; its own 'wikitext' is word and byte perplexity

examples:
  llmfold eval --model OUT --against DENSE
  llmfold eval --model OUT --against DENSE --tasks wikitext2,folding --output scores.json
  llmfold eval --model OUT --tasks folding,piqa --data-dir DIR --limit 100
"""


def build_parser() -> Parser:
    """The parser of ``llmfold eval``."""
    parser = Parser(
        "llmfold eval",
        "llmfold eval --model MODEL [--against DENSE] [--tasks A,B] [--text FILE] [options]",
        "Measure perplexity, zero-shot accuracy and speed, and how close a model is to the dense one.",
        _EPILOG,
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument("--model", required=True, help="local folder, hub id, or 'demo'")
    what.add_argument("--against", help="the dense model that it was folded from, which is measured alike")
    what.add_argument("--against-revision", help="branch, tag or commit of the dense model on the hub")
    what.add_argument("--tasks", help="see below")
    what.add_argument("--text", help="text file for perplexity, or 'wikitext'")
    what.add_argument("--data-dir", help="folder of JSON lines for the tasks, in place of the hub")
    what.add_argument("--limit", type=int, help="score the first N documents of every task only")
    what.add_argument("--trust-remote-code", action="store_true", help="run the modelling file that the model carries")
    add_measuring(parser, batch_size)
    timed = parser.add_argument_group("the task speed")
    timed.add_argument("--prompt-tokens", type=int, help="tokens read at once (default: 128)")
    timed.add_argument("--new-tokens", type=int, help="tokens then written one by one (default: 32)")
    timed.add_argument("--speed-batch-size", type=int, help="sequences at once (default: 1)")
    timed.add_argument("--rounds", type=int, help="rounds, of which medians are taken (default: 5)")
    parser.add_argument("--output", type=Path, help="JSON file to write, with Markdown beside it")
    add_talk(parser)
    return parser


def batch_size(text: str) -> int | str:
    """Parse a number or ``auto``."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from error


def run(options: dict[str, Any]) -> None:
    """Measure, print, and write the files if one is named.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.errors import LlmfoldError
    from llmfold.evaluation.options import EvaluationSettings

    quiet, output = options.pop("quiet", False), options.pop("output", None)
    options.pop("debug", None)
    settings = EvaluationSettings(**options)

    from llmfold.evaluation.evaluate import evaluate  # takes seconds, which a usage error need not
    from llmfold.report.scoreboard import document, terminal
    from llmfold.report.terminal import print_table
    from llmfold.runtime.storage import write_text

    found = evaluate(settings, output, (lambda _: None) if quiet else tell)
    if output is not None:
        write_text(output.with_suffix(".md"), document(found))
    if not quiet:
        print_table(terminal(found))
    if found.failures:
        raise LlmfoldError(found.failures[0])
