"""``llmfold compare``: methods side by side in one table."""

from typing import TYPE_CHECKING, Any

from llmfold.commands import Command
from llmfold.commands.model_kind import add_image_choices, by_kind, options_for
from llmfold.commands.parser import finish, print_progress

if TYPE_CHECKING:
    from pathlib import Path

    from llmfold.experiments.image_settings import ImageSettings
    from llmfold.experiments.settings import Settings

INTERRUPTED = "interrupted; run the same command again to go on, finished results are kept"
_EPILOG = """A method may carry options of its own: self:refine=0 or calibrated:data=OTHER.txt,num_samples=128.

examples:
  llmfold compare --model demo --ratio 0.2 --methods paper,weights,self --text wikitext --output table
  llmfold compare --model ./llama --ratio 0.1,0.2,0.3 --methods self,flap --data train.txt --text test.txt --output t
  llmfold compare --model ./resnet --ratio 0.1,0.3,0.5 --methods self,paper,magnitude-l2 --images FOLDER --output t

An image model is known by its config. It is measured on --images, and its methods are those that fold takes for it:
paper:repair=statistics, say. It takes fewer of the other options.
"""


def add(commands: Any) -> None:
    """Describe the command."""
    from llmfold.evaluation.image_options import IMAGE_HEADING
    from llmfold.experiments.image_settings import ImageSettings
    from llmfold.experiments.settings import GROUPS, Settings
    from llmfold.options import add_options

    parser = commands.add_parser(
        "compare",
        usage="llmfold compare --model MODEL --ratio R[,R2] --methods A,B --text FILE --output DIR [options]",
        help="methods side by side in one table",
        description="Fold a model by several methods and measure all alike: tables, pictures and report.html.",
        epilog=_EPILOG,
    )
    add_options(parser, Settings, GROUPS, required=False)  # which are, is asked of the model
    add_options(parser, ImageSettings, IMAGE_HEADING, required=False)
    add_image_choices(parser, ImageSettings)
    finish(parser, Command(run, INTERRUPTED))


def run(options: dict[str, Any]) -> None:
    """Compare, and print the tables.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.experiments.image_settings import ImageSettings
    from llmfold.experiments.settings import Settings

    quiet, debug = options.pop("quiet", False), options.pop("debug", False)
    settings = by_kind(
        options,
        lambda: options_for(Settings, options, images=False),
        lambda: options_for(ImageSettings, options, images=True),
    )
    if isinstance(settings, tuple):
        _images(settings[1], quiet=quiet, debug=debug)
    else:
        _text(settings, quiet=quiet, debug=debug)


def _text(settings: "Settings", *, quiet: bool, debug: bool) -> None:
    from llmfold.experiments.compare import compare  # takes seconds, which a usage error need not
    from llmfold.experiments.table import terminal
    from llmfold.report.console import print_table

    comparison = compare(settings, (lambda _: None) if quiet else print_progress, debug=debug)
    if not quiet:
        for section in comparison.sections:
            print_table(terminal(section, decoder=settings.ratio_of == "decoder"))
        print(_written(comparison.output))


def _images(settings: "ImageSettings", *, quiet: bool, debug: bool) -> None:
    from llmfold.experiments.image_compare import compare_images
    from llmfold.experiments.image_table import terminal
    from llmfold.report.console import print_table

    comparison = compare_images(settings, (lambda _: None) if quiet else print_progress, debug=debug)
    if not quiet:
        for section in comparison.sections:
            print_table(terminal(section))
        print(_written(comparison.output))


def _written(output: "Path") -> str:
    return f"written: {output / 'report.html'}; compare.md, compare.json and pictures beside it"
