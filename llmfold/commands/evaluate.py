"""``llmfold eval``: perplexity, zero-shot accuracy, fidelity and speed of a model; accuracy of an image model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfold.commands import Command
from llmfold.commands.model_kind import by_kind, options_for
from llmfold.commands.parser import finish, print_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmfold.evaluation.image_options import ImageEvaluationSettings
    from llmfold.evaluation.options import EvaluationSettings

    Notify = Callable[[str], None]

INTERRUPTED = "interrupted; with --output, the same command goes on after the last finished task"
_EPILOG = """tasks, with commas between:
  wikitext2   perplexity as the papers measure it (needs no --against)
  folding     boolq, winogrande, arc_easy, arc_challenge: the tasks of the model folding paper
  speed       prefill, decode and loading beside the dense model; in llama.cpp too, if gguf and xllamacpp are installed
  NAME        any task of lm-eval, zero-shot; its own 'wikitext' is word and byte perplexity

examples:
  llmfold eval --model OUT --against DENSE
  llmfold eval --model OUT --against DENSE --tasks wikitext2,folding --output scores.json
  llmfold eval --model OUT --tasks folding,piqa --data-dir DIR --limit 100
  llmfold eval --model OUT --against DENSE --images FOLDER

An image model is known by its config. It is measured on --images, in float32, and takes fewer of the other options.
"""


def add(commands: Any) -> None:
    """Describe the command."""
    from llmfold.evaluation.image_options import IMAGE_HEADING, ImageEvaluationSettings
    from llmfold.evaluation.options import GROUPS, EvaluationSettings
    from llmfold.options import add_options

    parser = commands.add_parser(
        "eval",
        usage="llmfold eval --model MODEL [--against DENSE] [--tasks A,B] [--text FILE] [--images DATA] [options]",
        help="perplexity, accuracy, speed, and fidelity to the dense model",
        description="Measure perplexity, accuracy and speed, and how close a model is to the dense one.",
        epilog=_EPILOG,
    )
    add_options(parser, EvaluationSettings, GROUPS)
    add_options(parser, ImageEvaluationSettings, IMAGE_HEADING)
    parser.add_argument("--output", type=Path, help="JSON file to write, with Markdown beside it")
    finish(parser, Command(run, INTERRUPTED))


def run(options: dict[str, Any]) -> None:
    """Measure, print, and write the files if one is named.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.errors import UsageError
    from llmfold.evaluation.image_options import ImageEvaluationSettings
    from llmfold.evaluation.options import EvaluationSettings

    quiet, output = options.pop("quiet", False), options.pop("output", None)
    options.pop("debug", None)
    settings = by_kind(
        options,
        lambda: options_for(EvaluationSettings, options, images=False),
        lambda: options_for(ImageEvaluationSettings, options, images=True),
    )
    if output is not None and output == beside(output):
        raise UsageError(f"--output {output} is the JSON file to write, and its table would replace it: name it .json")
    notify = (lambda _: None) if quiet else print_progress
    if isinstance(settings, tuple):
        _images(settings[1], output, notify, quiet=quiet)
    else:
        _text(settings, output, notify, quiet=quiet)


def beside(output: Path) -> Path:
    """Where the table of a JSON file goes; a point in a name such as ``fold-0.2`` begins no ending."""
    return output.with_name(output.name.removesuffix(".json").removesuffix(".md") + ".md")


def _text(settings: "EvaluationSettings", output: Path | None, notify: "Notify", *, quiet: bool) -> None:
    from llmfold.errors import LlmfoldError
    from llmfold.evaluation.evaluate import evaluate  # takes seconds, which a usage error need not
    from llmfold.report.console import print_table
    from llmfold.report.scoreboard import document, terminal
    from llmfold.runtime.storage import write_text

    evaluation = evaluate(settings, output, notify)
    if output is not None:
        write_text(beside(output), document(evaluation))
    if not quiet:
        print_table(terminal(evaluation))
    if evaluation.failures:
        raise LlmfoldError(evaluation.failures[0])


def _images(settings: "ImageEvaluationSettings", output: Path | None, notify: "Notify", *, quiet: bool) -> None:
    from llmfold.evaluation.image_evaluate import evaluate_images
    from llmfold.report.console import print_table
    from llmfold.report.image_scores import document, terminal
    from llmfold.runtime.storage import write_text

    evaluation = evaluate_images(settings, output, notify)
    if output is not None:
        write_text(beside(output), document(evaluation))
    if not quiet:
        print_table(terminal(evaluation))
