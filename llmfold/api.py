"""The Python interface: ``llmfold.fold``, ``llmfold.sweep`` and ``llmfold.plan``."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmfold.afterwards import errors_name_outputs, measure_afterwards, prepare_afterwards
from llmfold.config import FoldConfig, LayerOverride, sweep_configs
from llmfold.errors import UsageError
from llmfold.hub.push import Target, push
from llmfold.pipeline.engine import fold_together
from llmfold.pipeline.opening import plan_from_config
from llmfold.pipeline.progress import listener_class
from llmfold.pipeline.sweep import fold_sweep
from llmfold.planning import FoldPlan
from llmfold.recipe import parse_layers
from llmfold.records.fold import FoldRecord
from llmfold.report.files import save_report
from llmfold.runtime.launch import is_main


class FoldReport(FoldRecord):
    """Result of a fold: its record, and what can be done with its output."""

    @classmethod
    def of(cls, record: FoldRecord) -> "FoldReport":
        """The record with what can be done."""
        return cls(**{field.name: getattr(record, field.name) for field in dataclasses.fields(record)})

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, revision: str | None = None, quiet: bool = False
    ) -> str:
        """Push the output to the Hugging Face hub; giving the same call again completes a push that broke off.

        Args:
            repo_id: ``"USER/NAME"``; created if it does not exist.
            private: make a new repository private; ``None`` is the hub's default for the user.
            revision: branch to push to, created if it does not exist; ``None`` is the main one.
            quiet: no progress bar, no list of files.

        Returns:
            The address of the model on the hub.

        Raises:
            UsageError: a malformed name or revision.
            OutputError: the folder is not a finished output any more.
            HubError: no token, no access, no connection.
        """
        return push(self.output, Target(repo_id, private=private, revision=revision), quiet=quiet)


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
    with listener_class(quiet=quiet, lines=lines)(announce) as listener:
        records = work(configs, listener, save_report)
        if is_main():
            with errors_name_outputs([record.output for record in records]):
                for record, config in zip(records, configs, strict=True):
                    measure_afterwards(record, config, suite, listener.stage)
    return [FoldReport.of(record) for record in records]


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
