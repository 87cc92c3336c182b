"""The Python interface: ``llmfold.fold`` and ``llmfold.plan``."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmfold.config import FoldConfig, LayerOverride
from llmfold.errors import UsageError
from llmfold.evaluation.afterwards import measure_afterwards, prepare_afterwards
from llmfold.planning import FoldPlan
from llmfold.recipe import parse_layers
from llmfold.report.record import FoldReport
from llmfold.streaming.engine import fold_checkpoint, plan_from_config
from llmfold.streaming.progress import Bar, Silent, on_terminal


def make_config(model: str | Path | FoldConfig, options: dict[str, Any]) -> FoldConfig:
    """Build a config from a model and options; ``layers`` may be given as in a recipe.

    Raises:
        UsageError: an unknown option or a bad value.
    """
    if isinstance(model, FoldConfig):
        if options:
            raise TypeError("give either a FoldConfig or options, not both")
        return model
    unknown = sorted(options.keys() - {field.name for field in dataclasses.fields(FoldConfig)})
    if unknown:
        raise UsageError(f"there is no option {unknown[0]!r}; see FoldConfig for those that exist")
    layers = options.get("layers")
    if layers and not all(isinstance(value, LayerOverride) for value in layers.values()):
        options = {**options, "layers": parse_layers(layers)}
    if options.get("output") is not None:
        options = {**options, "output": str(options["output"])}
    return FoldConfig(model=str(model), **options)


def fold(
    model: str | Path | FoldConfig,
    *,
    quiet: bool = False,
    announce: Callable[[FoldPlan], None] | None = None,
    **options: Any,
) -> FoldReport:
    """Fold a model and write the result.

    Args:
        model: local folder, hub id, ``"demo"``, or a complete :class:`FoldConfig`.
        quiet: no progress bar (there is none outside a terminal either way).
        announce: told the final plan, widths measured, before the first layer is folded.
        options: fields of :class:`FoldConfig`, e.g. ``ratio=0.2, output="OUT"``.

    Returns:
        The report; ``report.output`` is the folder that stock transformers loads.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    config = make_config(model, options)
    prepare_afterwards(config)
    with Silent(announce) if quiet or not on_terminal() else Bar(announce) as listener:
        report = fold_checkpoint(config, listener)
        measure_afterwards(report, config, listener.stage)
    return report


def plan(model: str | Path | FoldConfig, **options: Any) -> FoldPlan:
    """Plan a fold without doing it: widths, parameters and bytes before and after. Arguments as of :func:`fold`."""
    return plan_from_config(make_config(model, options))
