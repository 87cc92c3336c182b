"""The Python interface: ``llmfold.fold``, ``llmfold.sweep`` and ``llmfold.plan``."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmfold.config import FoldConfig, LayerOverride, sweep_configs
from llmfold.errors import UsageError
from llmfold.evaluation.afterwards import finished, measure_afterwards, prepare_afterwards
from llmfold.planning import FoldPlan
from llmfold.recipe import parse_layers
from llmfold.report.record import FoldReport
from llmfold.streaming.engine import fold_together
from llmfold.streaming.launch import leads
from llmfold.streaming.opening import plan_from_config
from llmfold.streaming.progress import Bar, Lines, Silent, on_terminal
from llmfold.streaming.sweep import fold_sweep


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
    return fold_configs([make_config(model, options)], quiet=quiet, announce=announce)[0]


def fold_configs(
    configs: Sequence[FoldConfig],
    *,
    quiet: bool = False,
    lines: bool = False,
    announce: Callable[[FoldPlan], None] | None = None,
) -> list[FoldReport]:
    """Fold by one config, or by several that differ in ratio and output only; other arguments as of :func:`fold`.

    With ``lines``, a plain line now and then stands in for the bar where there is no terminal.
    """
    work = fold_sweep if len(configs) > 1 else fold_together
    suite = prepare_afterwards(configs[0])
    shown = Silent if quiet or not leads() else Bar if on_terminal() else Lines if lines else Silent
    with shown(announce) as listener:
        reports = work(configs, listener)
        if leads():
            with finished([report.output for report in reports]):
                for report, config in zip(reports, configs, strict=True):
                    measure_afterwards(report, config, suite, listener.stage)
    return reports


def sweep(
    model: str | Path,
    ratios: Sequence[float],
    *,
    quiet: bool = False,
    announce: Callable[[FoldPlan], None] | None = None,
    **options: Any,
) -> list[FoldReport]:
    """Fold a model to several ratios and write a checkpoint for each.

    ``paper`` clusters each layer once for all of them; methods that measure sample and measure once. Every checkpoint
    has the bytes of a fold of its own.

    Args:
        model: local folder, hub id or ``"demo"``.
        ratios: fractions to remove.
        quiet: as of :func:`fold`.
        announce: told of every plan.
        options: as of :func:`fold`; ``output`` is the folder that will hold ``MODEL-folded-RATIO`` for each ratio.

    Returns:
        The reports, in the order of ``ratios``.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    if not ratios:
        raise UsageError("a sweep needs at least one ratio")
    configs = sweep_configs(make_config(model, {**options, "ratio": ratios[0]}), ratios)
    return fold_configs(configs, quiet=quiet, announce=announce)


def plan(model: str | Path | FoldConfig, **options: Any) -> FoldPlan:
    """Plan a fold without doing it: widths, parameters and bytes before and after. Arguments as of :func:`fold`."""
    return plan_from_config(make_config(model, options))
