"""``llmfold fold`` and ``llmfold plan`` of an image model, which its config tells."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfold.hub.push import Target
    from llmfold.images.config import ImageConfig


@dataclass(frozen=True)
class ImageFolds:
    """Folds of an image model by configs that differ in ratio and output only; ``image_class`` is its stock class."""

    image_class: str
    configs: "tuple[ImageConfig, ...]"


def run_images(folds: ImageFolds, target: "Target | None", *, dry_run: bool, quiet: bool) -> None:
    """Fold, show what was done, and push it where that is asked for; with ``dry_run`` print the plans.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    from llmfold.errors import UsageError
    from llmfold.runtime.launch import world_size

    if world_size() > 1:
        raise UsageError("an image model folds in one process: start it without torchrun")
    if dry_run:
        return _plan(folds)
    try:
        _fold(folds, target, quiet=quiet)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "interrupted; nothing is left of it, run the same command again") from stop


def _plan(folds: ImageFolds) -> None:
    """Print the plans; weights are read where they are there."""
    from llmfold.checkpoint import resolve
    from llmfold.images.model import open_image_model, open_without_weights
    from llmfold.images.plan import plan_image
    from llmfold.pipeline.opening import has_weights
    from llmfold.report.console import print_table
    from llmfold.report.images_terminal import image_plan_table

    first = folds.configs[0]
    source = resolve(first.model, revision=first.revision, weights=False)
    model = (open_image_model if has_weights(source.folder) else open_without_weights)(
        source, folds.image_class, heads=first.attention_ratio
    )
    for config in folds.configs:
        print_table(image_plan_table(plan_image(model, config)))


def _fold(folds: ImageFolds, target: "Target | None", *, quiet: bool) -> None:
    from functools import cache, partial

    from llmfold.checkpoint.locate import locate
    from llmfold.checkpoint.preflight import check_replaceable, resolved
    from llmfold.images.model import open_image_model
    from llmfold.images.plan import plan_image
    from llmfold.images.run import fold_image, inputs_for
    from llmfold.pipeline.progress import listener_class
    from llmfold.report.console import print_table
    from llmfold.report.files import save_report
    from llmfold.report.images_terminal import image_plan_table, image_report_table

    configs = folds.configs
    if target:
        from llmfold.hub.push import check_login, push

        check_login(target)
    for config in configs:
        check_replaceable(resolved(config.output_path), config.overwrite)
    first = configs[0]
    model = open_image_model(locate(first.model, first.revision), folds.image_class, heads=first.attention_ratio)
    plans = [plan_image(model, config) for config in configs]
    with listener_class(quiet=quiet, lines=True)() as listener:
        if not quiet:
            for plan in plans:
                print_table(image_plan_table(plan))
        inputs = cache(partial(inputs_for, model, first, listener))
        records = [fold_image(model, plan, listener, save_report, inputs) for plan in plans]
    if not quiet:
        for record in records:
            print_table("")
            print_table(image_report_table(record))
    if target:
        address = push(records[0].output, target, quiet=quiet)
        if not quiet:
            print(address)
