"""``llmfold compare``: fold a model by every method, measure all of them alike, and write the table and its picture."""

import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfold.api import fold
from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.locate import locate, public_name
from llmfold.checkpoint.lock import acquire_lock, release_lock
from llmfold.config import FoldConfig
from llmfold.data.texts import read_text
from llmfold.data.tokens import resolve_effort, tokens_sha256
from llmfold.environment import machine_words, versions
from llmfold.errors import LlmfoldError, OutputError
from llmfold.evaluation import fidelity
from llmfold.evaluation.cache import cache_key
from llmfold.evaluation.dense_comparison import DenseComparison
from llmfold.evaluation.loading import Loading
from llmfold.evaluation.perplexity import text_windows
from llmfold.experiments.chart import chart
from llmfold.experiments.results import Results, Row, Run, Spread, summarise
from llmfold.experiments.settings import Amount, Settings, describe
from llmfold.experiments.table import Section, document
from llmfold.experiments.variants import Variant
from llmfold.models.tying import stored_shape
from llmfold.options import public_file
from llmfold.runtime.devices import pick_device
from llmfold.runtime.storage import file_sha256, write_text

Notify = Callable[[str], None]
MARKDOWN_FILE, CHART_FILE = "compare.md", "compare.svg"
_DECIDING = ("llmfold", "torch", "transformers")
_FOLDERS = re.compile(r"(?<![\w.:/])~?/(?:[^\s/:,;'\"]+/)*")


@dataclass(frozen=True)
class Comparison:
    """Rows and tables of a comparison; the same stands in the files of ``output``."""

    output: Path
    dense: Row
    rows: tuple[Row, ...]
    sections: tuple[Section, ...]


def compare(settings: Settings, notify: Notify = lambda _: None, *, debug: bool = False) -> Comparison:
    """Fold with every method and seed, evaluate all, and write compare.md, compare.json and compare.svg.

    Results that compare.json already holds for the same model, options and versions are used again, so an interrupted
    comparison goes on where it stopped. A fold that fails becomes a row with its reason.

    Args:
        settings: what to compare.
        notify: told of progress, one line at a time.
        debug: let errors that nobody expected through, rather than list them.

    Raises:
        LlmfoldError: the model, the text or the output cannot be used at all.
    """
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{settings.output} cannot be created: {error.strerror}") from error
    busy = f"another comparison is writing {settings.output}: wait for it, or choose another output"
    lock = acquire_lock(settings.output / ".lock", busy)
    try:
        return _Comparing(settings, notify, debug).run()
    finally:
        release_lock(lock)


class _Comparing:
    """One comparison."""

    def __init__(self, settings: Settings, notify: Notify, debug: bool) -> None:
        self.settings, self.notify, self.debug = settings, notify, debug
        self.source = locate(settings.model, settings.revision)
        folder = self.source.folder
        self.checkpoint = Checkpoint.open(folder)
        self.shape = stored_shape(self.checkpoint)
        self.text = read_text(settings.text, settings.text_column)
        self.windows = text_windows(folder, self.text, **settings.cut())
        self.loading = Loading.of(settings.compute_dtype, pick_device(settings.device), folder)
        tokens, batch = settings.fidelity_tokens, settings.batch_size
        self.models = DenseComparison(folder, self.windows, self.loading, batch=batch, tokens=tokens, notify=notify)
        self.results = Results.load(settings.output)
        self.dense_key = self._dense_key()
        self.used: list[Run] = []

    def run(self) -> Comparison:
        """Do every fold that has no result yet."""
        if self.settings.recompute or self.results.dense.get("key") != self.dense_key:
            self._measure_dense()
        folds = list(self.settings.folds())
        for number, (amount, variant, seed) in enumerate(folds, 1):
            config = self.settings.fold_config(variant, amount, seed, self._place(variant, amount, seed))
            key = self._key(config)
            run, note = self._earlier(key, config), " (from an earlier run)"
            if run is None:
                run, note = self._fold(key, variant, amount, config), ""
                self.results.runs[key] = run
            self.used.append(run)
            place = f"{number}/{len(folds)} {variant.label}, {describe(amount)}, seed {seed}"
            self.notify(f"{place}: {_outcome(run)}{note}")
            self.results.save(self._facts(), self._rows())
        if not self.settings.keep:
            with suppress(OSError):  # folds of an earlier --keep are in it
                self.settings.models_folder.rmdir()
        return self._publish()

    def _earlier(self, key: str, config: FoldConfig) -> Run | None:
        run = self.results.runs.get(key)
        lost = self.settings.keep and not config.output_path.exists()
        return None if self.settings.recompute or lost or run is None or run.error is not None else run

    def _fold(self, key: str, variant: Variant, amount: Amount, config: FoldConfig) -> Run:
        common: dict[str, Any] = {"key": key, "method": variant.label, "amount": amount, "seed": config.seed}
        try:
            begin = time.perf_counter()
            report = fold(config, quiet=True)
            seconds = time.perf_counter() - begin - report.seconds.get("check", 0.0)
            remote_code = bool(report.plan["needs_trust_remote_code"])
            scores = self.models.measure(config.output_path, remote_code=remote_code)
        except Exception as error:  # one method must not take the others with it
            expected = isinstance(error, LlmfoldError)
            if self.debug and not expected:
                raise
            partial = config.output_path.with_name(f".{config.output_path.name}.llmfold-partial")
            shutil.rmtree(partial, ignore_errors=True)
            prefix = "" if expected else f"unexpected {type(error).__name__}: "
            return Run(**common, error=_without_folders(f"{prefix}{error}"))
        finally:
            if not self.settings.keep:
                shutil.rmtree(config.output_path, ignore_errors=True)
        assert scores.perplexity is not None
        return Run(
            **common,
            data=str(report.data.get("data", "none")),
            perplexity=scores.perplexity.value,
            excess=scores.perplexity.nll - float(self.results.dense["nll"]),
            kl=scores.fidelity.kl if scores.fidelity else None,
            top1=scores.fidelity.top1 if scores.fidelity else None,
            parameters=report.parameters_after,
            removed=report.ratio,
            removed_decoder=float(report.plan["decoder_ratio"]),
            seconds=seconds,
        )

    def _measure_dense(self) -> None:
        perplexity = self.models.dense().perplexity
        assert perplexity is not None
        self.results.dense = {
            "key": self.dense_key,
            "perplexity": perplexity.value,
            "nll": perplexity.nll,
            "parameters": self.shape.parameters,
            "protocol": perplexity.protocol,
            "fidelity_protocol": self.models.fidelity_protocol(),
        }

    def _place(self, variant: Variant, amount: Amount, seed: int) -> Path:
        parts = [variant.label, *(f"{name}-{value:g}" for name, value in amount.items()), f"seed-{seed}"]
        return self.settings.models_folder / re.sub(r"[^\w.=-]+", "-", "-".join(parts))

    def _dense_key(self) -> str:
        tokens = self.windows.tokens
        return cache_key(
            self.checkpoint.fingerprint(),
            tokens_sha256(tokens),
            [self.text.name, *tokens.shape, self.windows.stride, self.loading.words, str(self.loading.device)],
            [self.settings.fidelity_tokens, fidelity.LENGTH, fidelity.SEED],
            {name: versions()[name] for name in _DECIDING},
        )

    def _key(self, config: FoldConfig) -> str:
        work = {**resolve_effort(config, self.shape).work(), "model": None}
        if config.data is not None:
            path = Path(config.data).expanduser()
            work["data"] = [public_file(config.data), file_sha256(path) if path.is_file() else None]
        return cache_key(self.dense_key, work)

    def _rows(self) -> list[Row]:
        groups: dict[tuple[str, ...], list[Run]] = {}
        for run in self.used:
            groups.setdefault((run.method, describe(run.amount)), []).append(run)
        return [summarise(runs) for runs in groups.values()]

    def _facts(self) -> dict[str, Any]:
        return {
            "command": self.settings.command(),
            "model": public_name(self.source),
            "text": {"name": self.text.name, "sha256": self.text.sha256},
            "versions": versions(),
            "machine": machine_words(),
        }

    def _publish(self) -> Comparison:
        rows, dense, output = self._rows(), self._dense_row(), self.settings.output
        sections = tuple(
            Section(describe(amount), [dense, *(row for row in rows if row.amount == amount)])
            for amount in self.settings.amounts()
        )
        decoder = self.settings.ratio_of == "decoder"
        perplexity = float(self.results.dense["perplexity"])
        picture = chart(public_name(self.source), self.text.name, perplexity, rows, decoder=decoder)
        if picture is None:
            (output / CHART_FILE).unlink(missing_ok=True)
        else:
            write_text(output / CHART_FILE, picture)
        name = CHART_FILE if picture else None
        page = document(self._facts(), self.results.dense, sections, decoder=decoder, picture=name)
        write_text(output / MARKDOWN_FILE, page)
        return Comparison(output, dense, tuple(rows), sections)

    def _dense_row(self) -> Row:
        dense, nothing = self.results.dense, Spread(0.0)
        exact = self.settings.fidelity_tokens > 0
        return Row(
            "dense",
            {},
            seeds=0,
            perplexity=Spread(dense["perplexity"]),
            excess=nothing,
            kl=nothing if exact else None,
            top1=Spread(1.0) if exact else None,
            parameters=Spread(dense["parameters"]),
            removed=nothing,
            removed_decoder=nothing,
        )


def _outcome(run: Run) -> str:
    if run.error is not None:
        return run.error
    return f"perplexity {run.perplexity:.2f}, {run.removed:.1%} removed in {run.seconds:.1f} s"


def _without_folders(message: str) -> str:
    """A message without folders of this machine and in one line."""
    return _FOLDERS.sub("", " ".join(message.split()))
