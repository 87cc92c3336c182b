"""The command line: ``llmfold --model MODEL --ratio 0.2`` and ``llmfold plan …``; others are in llmfold/commands."""

import argparse
import dataclasses
import io
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llmfold.commands.parser import Parser, numbers

if TYPE_CHECKING:
    from llmfold.config import FoldConfig
    from llmfold.hub.push import Target
    from llmfold.planning import FoldPlan

INTERRUPTED = 130
_COMMANDS = ("fold", "plan")
_EPILOG = """examples:
  llmfold --model demo --ratio 0.2
  llmfold --model huggyllama/llama-7b --ratio 0.2 --output llama-7b-small
  llmfold plan --model ./my-model --ratio 0.3
  llmfold --model ./llama-7b --recipe recipe.yaml
  llmfold --model ./llama-7b --ratio 0.1,0.2,0.3 --method paper --output folds
  torchrun --nproc-per-node 2 -m llmfold --model ./llama-7b --ratio 0.2 --method paper

other commands, which come first on the line:
  llmfold compare --help    methods side by side in one table
  llmfold eval --help       perplexity, and fidelity to the dense model
  llmfold push --help       a finished output to the Hugging Face hub
"""


def build_parser() -> Parser:
    """The parser of all commands; unset options are absent, so that a recipe can fill them."""
    from llmfold import config
    from llmfold.effort import EFFORTS

    parser = Parser(
        "llmfold",
        "llmfold [fold|plan] --model MODEL --ratio RATIO [options]",
        "Make a large language model smaller with no data and no fine-tuning.",
        _EPILOG,
    )
    parser.add_argument("command", nargs="?", choices=_COMMANDS, default="fold", help="fold (default), or plan only")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    what = parser.add_argument_group("what to fold")
    what.add_argument("--model", help="local folder, hub id, or 'demo' for the checkpoint that ships with llmfold")
    what.add_argument("--revision", help="branch, tag or commit on the hub")
    what.add_argument(
        "--output",
        help="folder to write (default: MODEL-folded-RATIO here); with several ratios, the folder that holds theirs",
    )
    what.add_argument("--overwrite", action="store_true", help="replace an earlier llmfold output or partial run")
    what.add_argument("--recipe", help="YAML file with any of these options and per-layer overrides")
    much = parser.add_argument_group("how much to remove")
    much.add_argument(
        "--ratio", type=numbers, help="fraction of parameters to remove, e.g. 0.2, or several: 0.1,0.2,0.3"
    )
    much.add_argument("--ratio-of", choices=config.RATIO_BASES, help="what --ratio counts (default: model)")
    much.add_argument("--mlp-ratio", type=float, help="fraction of MLP neurons to remove in every layer")
    much.add_argument("--attention-ratio", type=float, help="fraction of KV groups to remove in every layer")
    much.add_argument("--allocation", choices=config.ALLOCATIONS, help="adaptive: every layer its own measured width")
    much.add_argument("--multiple-of", type=int, help="MLP widths are multiples of this (default: 128 if wide, else 1)")
    much.add_argument("--tensor-parallel", type=int, help="keep widths and head counts divisible by N devices")
    how = parser.add_argument_group("how to fold")
    how.add_argument("--method", choices=config.METHODS, help="what decides and repairs (default: self)")
    how.add_argument("--data", help="text file or hub data set of --method calibrated and of baselines")
    how.add_argument("--no-bias", dest="bias", action="store_false", help="flap without its bias compensation")
    how.add_argument("--temperature", type=float, help="of sampling under --method self (default: 0.9)")
    how.add_argument(
        "--effort",
        choices=tuple(EFFORTS),
        help="how much to measure and refine; 'plan' tells the times (default: normal)",
    )
    how.add_argument("--num-samples", type=int, help="sequences to measure on (default: by --effort)")
    how.add_argument("--sequence-length", type=int, help="tokens per sequence (default: by --effort)")
    how.add_argument("--refine", type=int, help="gradient steps on every MLP, 0: none (default: by --effort)")
    how.add_argument("--cluster", choices=config.CLUSTERS, help="clustering of units (default: ward)")
    how.add_argument("--align", choices=config.ALIGNMENTS, help="gauge: bring units to a common gauge before merging")
    how.add_argument("--repair", choices=config.REPAIRS, help="variance: the paper's Fold-AR correction")
    how.add_argument("--seed", type=int, help="seed of everything random (default: 0)")
    how.add_argument("--dtype", choices=config.DTYPES, help="dtype written (default: auto, as stored)")
    how.add_argument(
        "--compute-dtype",
        choices=config.DTYPES,
        help="dtype of forward passes (default: auto, as stored where the device multiplies that, else float32)",
    )
    how.add_argument("--device", help="torch device (default: auto, CUDA when present)")
    run = parser.add_argument_group("the run")
    after = parser.add_argument_group("what to measure afterwards")
    after.add_argument(
        "--fidelity-tokens",
        type=int,
        help="tokens of the dense model to compare on; 0: no comparison, no continued prompts (default: 2048)",
    )
    after.add_argument(
        "--eval", nargs="?", const="wikitext2,folding", help="tasks of 'llmfold eval' (default: %(const)s)"
    )
    after.add_argument("--eval-text", help="text file in place of WikiText-2")
    after.add_argument("--eval-data-dir", help="folder of JSON lines in place of the hub")
    after.add_argument("--eval-limit", type=int, help="first N documents of every task only")
    run.add_argument("--max-memory", help="hold no more of the model to sample: 4GiB, or 0=20GiB,cpu=8GiB by device")
    run.add_argument("--max-shard-size", help="largest file of weights (default: 5GB)")
    run.add_argument("--verify", choices=config.VERIFICATIONS, help="reload check before publishing (default: full)")
    run.add_argument("--trust-remote-code", action="store_true", help="copy Python files that the checkpoint carries")
    run.add_argument("--push-to-hub", metavar="USER/NAME", help="push the result to the Hugging Face hub")
    run.add_argument("--private", action="store_true", help="push to a private repository")
    run.add_argument("--hub-revision", metavar="BRANCH", help="branch to push to (default: main)")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop, like 'llmfold plan'")
    run.add_argument("--quiet", action="store_true", help="print errors only")
    run.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def read_configs(options: dict[str, Any]) -> "list[FoldConfig]":
    """Merge command line over recipe into one config, or one for each of several ratios.

    Raises:
        UsageError: no model, or whatever the recipe or the config refuses.
        CheckpointError: a model that is a path where no folder is.
    """
    from llmfold.checkpoint.model_path import local_folder
    from llmfold.config import FoldConfig, sweep_configs
    from llmfold.demo import DEMO_NAME
    from llmfold.errors import UsageError
    from llmfold.recipe import load_recipe

    values = {**load_recipe(options["recipe"])} if "recipe" in options else {}
    known = {f.name for f in dataclasses.fields(FoldConfig)}
    values.update({name: value for name, value in options.items() if name in known})
    if "model" not in values:
        raise UsageError("--model is missing; pass a local folder, a hub id, or 'demo'")
    ratios: Any = values.get("ratio")
    several = isinstance(ratios, list | tuple)
    if several and not ratios:
        raise UsageError("--ratio is empty; give a fraction, or several")
    config = FoldConfig(**{**values, "ratio": ratios[0]} if several else values)
    if config.model != DEMO_NAME:
        local_folder(config.model, config.revision)  # a path that is none is told at once
    return sweep_configs(config, ratios) if several and len(ratios) > 1 else [config]


def _show_plans(configs: "list[FoldConfig]") -> "list[FoldPlan]":
    from llmfold.pipeline.estimate import estimate
    from llmfold.pipeline.opening import plan_from_config
    from llmfold.report.terminal import plan_table, print_table

    plans = [plan_from_config(config) for config in configs]
    for made in plans:
        print_table(plan_table(made, estimate(made)))
    return plans


def _plan(configs: "list[FoldConfig]") -> None:
    """Print the plans, and fail where this machine cannot do them."""
    from llmfold.pipeline.estimate import check_machine
    from llmfold.runtime.devices import pick_device

    check_machine(_show_plans(configs), on_host=pick_device(configs[0].device).type == "cpu")


def read_target(options: dict[str, Any]) -> "Target | None":
    """Where the result is to be pushed, if anywhere.

    Raises:
        UsageError: a malformed name, or options of a push without one.
    """
    from llmfold.errors import UsageError

    if "push_to_hub" in options:
        from llmfold.hub.push import Target

        return Target(options["push_to_hub"], options.get("private"), options.get("hub_revision"))
    for name in ("private", "hub_revision"):
        if name in options:
            raise UsageError(f"--{name.replace('_', '-')} is for --push-to-hub USER/NAME: pass both, or neither")
    return None


def _fold(configs: "list[FoldConfig]", target: "Target | None", *, quiet: bool) -> None:
    from llmfold.report.terminal import plan_table, print_table, report_table
    from llmfold.runtime.launch import launched, leads

    def announce(plan: "FoldPlan") -> None:
        print_table(plan_table(plan))

    if target:
        from llmfold.hub.push import check_login

        check_login(target)
    if not quiet:
        _show_plans(configs)
        if launched() > 1 and not configs[0].shared:
            others = launched() - 1
            print_table(f"--method {configs[0].method} goes from layer to layer in one process; {others} more wait")
        if configs[0].measures:
            print_table("measuring where to remove what …")
    from llmfold.api import fold_configs  # takes seconds: the plan is on the screen by now

    wanted = announce if configs[0].replans and not quiet else None
    reports = fold_configs(configs, quiet=quiet, lines=True, announce=wanted)
    for report in reports:
        if not quiet:
            print_table("")
            print_table(report_table(report))
    if target and leads():
        from llmfold.hub.push import push

        address = push(reports[0].output, target, quiet=quiet)
        if not quiet:
            print(address)


def _fold_or_plan(options: dict[str, Any]) -> None:
    from llmfold.errors import UsageError
    from llmfold.runtime.launch import leads

    configs, target = read_configs(options), read_target(options)
    if target and len(configs) > 1:
        raise UsageError("--push-to-hub pushes one result: pass one --ratio, or push each folder with llmfold push")
    if options["command"] != "plan" and "dry_run" not in options:
        _fold(configs, target, quiet=options.get("quiet", False) or not leads())
    elif leads():
        _plan(configs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for failures, 2 for usage, 130 for Ctrl-C."""
    from llmfold.errors import LlmfoldError, UsageError
    from llmfold.runtime.launch import launched, speaks

    _show_any_letter()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser, run, interrupted = _command(words)
        options = vars(_parse(parser, words))
    except SystemExit as stop:
        return int(stop.code or 0)
    if "version" in options:
        from llmfold import __version__

        print(f"llmfold {__version__}")
        return 0
    debug = options.get("debug", False)
    try:
        if run is not _fold_or_plan and launched() > 1:
            raise UsageError("compare and eval run in one process; folding is what several can share")
        run(options)
    except LlmfoldError as error:
        if speaks(error):
            _complain(str(error), debug)
        return error.exit_code
    except KeyboardInterrupt as stop:
        if speaks(stop):
            _complain(str(stop) or interrupted, debug)
        return INTERRUPTED
    except Exception as error:  # a person at the prompt gets a sentence, whatever broke
        if speaks(error):
            _complain(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it", debug)
        return 1
    return 0


def _command(words: list[str]) -> tuple[Parser, Callable[[dict[str, Any]], None], str]:
    """Parser, work and farewell of the command that stands first, which is taken away; fold and plan have none."""
    if words[:1] == ["compare"]:
        from llmfold.commands import compare

        del words[0]
        return compare.build_parser(), compare.run, compare.INTERRUPTED
    if words[:1] == ["eval"]:
        from llmfold.commands import evaluate

        del words[0]
        return evaluate.build_parser(), evaluate.run, evaluate.INTERRUPTED
    if words[:1] == ["push"]:
        from llmfold.commands import push

        del words[0]
        return push.build_parser(), push.run, push.INTERRUPTED
    return build_parser(), _fold_or_plan, "interrupted; run the same command again to resume at the last whole layer"


def _parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; unknown options are named here, since argparse would take the value of one for the command."""
    known = {name for action in parser._actions for name in action.option_strings}
    for name in (argument.split("=", 1)[0] for argument in arguments):
        if name.startswith("--") and name not in known:
            parser.error(f"there is no option {name}")
    return parser.parse_args(arguments)


def _show_any_letter() -> None:
    """Print a question mark for what the terminal's encoding lacks, rather than end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"llmfold: {' '.join(message.split())}", file=sys.stderr)
