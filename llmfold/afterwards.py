"""What a fold measures when it is done: how close the folded model is to the dense one, and the tasks of ``--eval``."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmfold.checkpoint.locate import locate
from llmfold.config import FoldConfig
from llmfold.data.plain_text import TEXT_COLUMN
from llmfold.errors import LlmfoldError
from llmfold.evaluation.evaluate import evaluate
from llmfold.evaluation.loading import Loading, fits
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.perplexity import text_windows
from llmfold.evaluation.suite import Suite, prepare
from llmfold.pipeline.estimate import AFTERWARDS
from llmfold.records.fold import FoldRecord
from llmfold.report.files import save_report
from llmfold.runtime.devices import pick_device


def prepare_afterwards(config: FoldConfig) -> Suite:
    """Find the data of ``--eval``, and read its text, before hours go into the fold.

    Raises:
        UsageError: an unknown task, data that cannot be had, a text that is too short.
        CheckpointError: a tokenizer that cannot be read, or is not the model's.
    """
    suite = prepare(
        config.eval,
        text=config.eval_text,
        column=config.text_column,
        data_dir=config.eval_data_dir,
        limit=config.eval_limit,
        prefix="--eval-",
    )
    if suite.text:
        text_windows(locate(config.model, config.revision).folder, suite.text)
    return suite


@contextmanager
def errors_name_outputs(outputs: Sequence[Path]) -> Iterator[None]:
    """Errors and interrupts inside say where the published folds are: running the fold again would not measure them."""
    places = " and ".join(map(str, outputs))
    stands = f"the fold is finished and stands at {places}: llmfold eval measures it, llmfold push pushes it"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted while measuring; {stands}") from None
    except LlmfoldError as error:
        raise type(error)(f"{error}; {stands}") from error


def measure_afterwards(report: FoldRecord, config: FoldConfig, suite: Suite, notify: Callable[[str], None]) -> None:
    """Measure the published fold, and write its report anew where that found anything.

    The fold stands whatever happens here. Fidelity alone is left out where the dense model does not fit in memory:
    offloaded it would be read once for every token that is sampled.

    Args:
        report: of the fold; told what was measured.
        config: of the fold.
        suite: of :func:`prepare_afterwards`.
        notify: told what begins.

    Raises:
        LlmfoldError: a model that cannot be run, a task that cannot be scored.
    """
    tokens, limits = config.fidelity_tokens, config.memory_limits
    if not tokens and suite.empty:
        return
    dense = locate(config.model, config.revision).folder
    if tokens and not fits(dense, Loading(None, pick_device(config.device), limits)):
        tokens = 0
        report.notes += [
            "closeness to the dense model was not measured and no prompt continued, since that does not fit in memory: "
            f"llmfold eval --model {report.output.name} --against {report.source['name']} measures it by offloading"
        ]
    start = time.perf_counter()
    failures: list[str] = []
    if tokens or not suite.empty:
        evaluation = evaluate(_settings(config, report, tokens), notify=notify, suite=suite, limits=limits)
        report.quality, failures = evaluation.to_dict(), evaluation.failures
        if tokens and not evaluation.samples:
            report.notes += ["no prompt was continued by the two models, since there is no tokenizer that fits them"]
        far = evaluation.fidelity.warning if evaluation.fidelity else None
        report.warnings = [warning for warning in (report.data.get("warning"), far) if warning]
    report.seconds[AFTERWARDS] = time.perf_counter() - start
    save_report(report, report.output)
    if failures:
        raise LlmfoldError(failures[0])


def _settings(config: FoldConfig, report: FoldRecord, tokens: int) -> EvaluationSettings:
    return EvaluationSettings(
        str(report.output),
        tasks=config.eval,
        against=config.model,
        against_revision=config.revision,
        text=config.eval_text,
        text_column=config.text_column if config.eval_text else TEXT_COLUMN,
        data_dir=config.eval_data_dir,
        limit=config.eval_limit,
        compute_dtype=config.compute_dtype,
        device=config.device,
        fidelity_tokens=tokens,
        trust_remote_code=bool(report.plan["needs_trust_remote_code"]),
    )
