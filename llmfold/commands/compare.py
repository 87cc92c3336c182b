"""``llmfold compare``: methods side by side in one table."""

from pathlib import Path
from typing import Any

from llmfold.commands.parser import Parser, add_measuring, add_talk, numbers, tell
from llmfold.config import METHODS, RATIO_BASES

INTERRUPTED = "interrupted; run the same command again to go on, finished results are kept"
_EPILOG = """A method may carry options of its own: self:refine=0 or calibrated:data=OTHER.txt,num_samples=128.

examples:
  llmfold compare --model demo --ratio 0.2 --methods paper,weights,self --text wikitext --output table
  llmfold compare --model ./llama --ratio 0.1,0.2,0.3 --methods self,flap --data train.txt --text test.txt --output t
"""


def build_parser() -> Parser:
    """The parser of ``llmfold compare``."""
    parser = Parser(
        "llmfold compare",
        "llmfold compare --model MODEL --ratio R[,R2] --methods A,B --text FILE --output DIR [options]",
        "Fold a model by several methods, measure all alike, and write compare.md, compare.json and compare.svg.",
        _EPILOG,
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument("--model", required=True, help="local folder, hub id, or 'demo'")
    what.add_argument("--revision", help="branch, tag or commit on the hub")
    what.add_argument("--methods", required=True, help=f"with commas between: {', '.join(METHODS)}")
    what.add_argument("--text", required=True, help="text file for perplexity, or 'wikitext'")
    what.add_argument("--data", help="text file or hub data set of the methods that measure on outside text")
    what.add_argument("--output", required=True, type=Path, help="folder to write")
    what.add_argument("--seeds", type=int, help="fold with the seeds 0 to N - 1 (default: 3)")
    much = parser.add_argument_group("how much to remove, one of them possibly several values")
    much.add_argument("--ratio", type=numbers, help="fraction of parameters, e.g. 0.2 or 0.1,0.2,0.3")
    much.add_argument("--ratio-of", choices=RATIO_BASES, help="what fractions count (default: model)")
    much.add_argument("--mlp-ratio", type=numbers, help="fraction of MLP neurons in every layer")
    much.add_argument("--attention-ratio", type=numbers, help="fraction of KV groups in every layer")
    much.add_argument("--multiple-of", type=int, help="MLP widths are multiples of this")
    much.add_argument("--num-samples", type=int, help="sequences that methods measure on")
    add_measuring(parser)
    again = parser.add_argument_group("results")
    again.add_argument("--keep", action="store_true", help="leave the folded models in OUTPUT-models")
    again.add_argument("--recompute", action="store_true", help="do not use results that the output already holds")
    add_talk(parser)
    return parser


def run(options: dict[str, Any]) -> None:
    """Compare, and print the tables.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.experiments.settings import Settings

    quiet, debug = options.pop("quiet", False), options.pop("debug", False)
    settings = Settings(**options)

    from llmfold.experiments.compare import compare  # takes seconds, which a usage error need not
    from llmfold.experiments.table import terminal
    from llmfold.report.terminal import print_table

    found = compare(settings, (lambda _: None) if quiet else tell, debug=debug)
    if not quiet:
        for section in found.sections:
            print_table(terminal(section, decoder=settings.ratio_of == "decoder"))
        print(f"written: {found.output / 'compare.md'}, compare.json and compare.svg beside it")
