"""``llmfold fold`` and ``llmfold plan``: one or several narrower checkpoints, or what they would cost."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmfold.commands import Command
from llmfold.commands.model_kind import add_image_choices, by_kind, options_for
from llmfold.commands.parser import TALK, Parser, finish

if TYPE_CHECKING:
    from llmfold.commands.image_fold import ImageFolds
    from llmfold.config import Config, FoldConfig
    from llmfold.hub.push import Target
    from llmfold.planning import FoldPlan

_FOLD = """examples:
  llmfold --model demo --ratio 0.2
  llmfold --model huggyllama/llama-7b --ratio 0.2 --output llama-7b-small
  llmfold --model ./llama-7b --recipe recipe.yaml
  llmfold --model ./llama-7b --ratio 0.1,0.2,0.3 --method paper --output folds
  llmfold --model microsoft/resnet-18 --ratio 0.3
  torchrun --nproc-per-node 2 -m llmfold --model ./llama-7b --ratio 0.2 --method paper

An image model is known by its config. It takes --method self, paper, ifm, inn, magnitude-l1 or magnitude-l2, --repair
none, variance or statistics, --ratio-of parameters or channels, and fewer of the other options.
"""
_PLAN = """examples:
  llmfold plan --model ./my-model --ratio 0.3
"""
_INTERRUPTED = "interrupted; run the same command again to resume at the last whole layer"


def add(commands: Any) -> None:
    """Describe both commands, whose options are the same."""
    command = Command(_fold_or_plan, _INTERRUPTED, shared=True)
    fold = commands.add_parser(
        "fold",
        usage="llmfold [fold] --model MODEL --ratio RATIO [options]",
        help="make a model smaller (the command may be left out)",
        description="Make a language or image model smaller with no data and no fine-tuning.",
        epilog=_FOLD,
    )
    plan = commands.add_parser(
        "plan",
        usage="llmfold plan --model MODEL --ratio RATIO [options]",
        help="widths, sizes, memory and time of a fold, without doing it",
        description="Say what a fold would do and what it would cost on this machine.",
        epilog=_PLAN,
    )
    plan.set_defaults(dry_run=True)
    from llmfold.images.config import ImageConfig

    for parser in (fold, plan):
        _add_options(parser)
        add_image_choices(parser, ImageConfig)
        finish(parser, command)


def _add_options(parser: Parser) -> None:
    from llmfold.config import GROUPS, FoldConfig
    from llmfold.options import add_options

    add_options(parser, FoldConfig, GROUPS, required=False)  # a recipe may say it
    headings = {group.title: group for group in parser._action_groups}
    headings["what to fold"].add_argument(
        "--recipe", help="YAML file with any of these options and per-layer overrides"
    )
    run = headings[TALK]
    run.add_argument("--push-to-hub", metavar="USER/NAME", help="push the result to the Hugging Face hub")
    run.add_argument("--private", action="store_true", help="push to a private repository")
    run.add_argument("--hub-revision", metavar="BRANCH", help="branch to push to (default: main)")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop, like 'llmfold plan'")


def read_configs(options: dict[str, Any]) -> "list[FoldConfig] | ImageFolds":
    """Merge command line over recipe into one config, or one for each of several ratios.

    Returns:
        The configs; those of image models with the name of the stock class.

    Raises:
        UsageError: no model, or whatever the recipe or the config refuses.
        CheckpointError: a model that is a path where no folder is, or cannot be had.
    """
    from llmfold.commands.image_fold import ImageFolds
    from llmfold.config import FoldConfig
    from llmfold.errors import UsageError
    from llmfold.images.config import ImageConfig
    from llmfold.recipe import load_recipe

    values = {**load_recipe(options["recipe"])} if "recipe" in options else {}
    known = {f.name for f in dataclasses.fields(FoldConfig)}
    values.update({name: value for name, value in options.items() if name in known})
    if "model" not in values:
        raise UsageError("--model is missing; pass a local folder, a hub id, or 'demo'")
    found = by_kind(
        values,
        lambda: _sweep(lambda one: FoldConfig(**one), values),
        lambda: _sweep(lambda one: options_for(ImageConfig, one, images=True), values),
    )
    return ImageFolds(found[0], tuple(found[1])) if isinstance(found, tuple) else found


def _sweep(make: "Callable[[dict[str, Any]], Config]", values: dict[str, Any]) -> "list[Config]":
    """A config, or one for each of several ratios."""
    from llmfold.config import sweep_configs
    from llmfold.errors import UsageError

    ratios: Any = values.get("ratio")
    several = isinstance(ratios, list | tuple)
    if several and not ratios:
        raise UsageError("--ratio is empty; give a fraction, or several")
    config = make({**values, "ratio": ratios[0]} if several else values)
    return sweep_configs(config, ratios) if several and len(ratios) > 1 else [config]


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


def _fold_or_plan(options: dict[str, Any]) -> None:
    from llmfold.commands.image_fold import ImageFolds, run_images
    from llmfold.errors import UsageError
    from llmfold.runtime.launch import is_main

    folds, target = read_configs(options), read_target(options)
    configs = folds.configs if isinstance(folds, ImageFolds) else folds
    if target and len(configs) > 1:
        raise UsageError("--push-to-hub pushes one result: pass one --ratio, or push each folder with llmfold push")
    quiet = options.get("quiet", False) or not is_main()
    if isinstance(folds, ImageFolds):
        run_images(folds, target, dry_run="dry_run" in options, quiet=quiet)
    elif "dry_run" not in options:
        _fold(folds, target, quiet=quiet)
    elif is_main():
        _plan(folds)


def _show_plans(configs: "list[FoldConfig]") -> "list[FoldPlan]":
    from llmfold.pipeline.estimate import estimate
    from llmfold.pipeline.opening import plan_from_config
    from llmfold.report.console import print_table
    from llmfold.report.terminal import plan_table

    plans = [plan_from_config(config) for config in configs]
    for plan in plans:
        print_table(plan_table(plan, estimate(plan)))
    return plans


def _plan(configs: "list[FoldConfig]") -> None:
    """Print the plans, and fail where this machine cannot do them."""
    from llmfold.pipeline.estimate import check_machine
    from llmfold.runtime.devices import pick_device

    check_machine(_show_plans(configs), on_host=pick_device(configs[0].device).type == "cpu")


def _fold(configs: "list[FoldConfig]", target: "Target | None", *, quiet: bool) -> None:
    from llmfold.report.console import print_table
    from llmfold.report.terminal import plan_table, report_table
    from llmfold.runtime.launch import is_main, world_size

    def announce(plan: "FoldPlan") -> None:
        print_table(plan_table(plan))

    if target:
        from llmfold.hub.push import check_login

        check_login(target)
    if not quiet:
        _show_plans(configs)
        if world_size() > 1 and not configs[0].independent:
            others = world_size() - 1
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
    if target and is_main():
        from llmfold.hub.push import push

        address = push(reports[0].output, target, quiet=quiet)
        if not quiet:
            print(address)
