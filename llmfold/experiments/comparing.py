"""What comparisons of all kinds of models share: folds in turn, results that are kept, a row a method and amount."""

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.locate import locate, public_name
from llmfold.checkpoint.lock import acquire_lock, release_lock
from llmfold.environment import machine_words, versions
from llmfold.errors import LlmfoldError, OutputError
from llmfold.evaluation.cache import cache_key
from llmfold.experiments.results import R, Results, W, summarise
from llmfold.experiments.settings import Amount, Folds, describe
from llmfold.experiments.table import Page, Section
from llmfold.experiments.variants import Variant
from llmfold.records.fold import PAGE_FILE
from llmfold.runtime.oom import explain_oom
from llmfold.runtime.storage import write_text

Notify = Callable[[str], None]
MARKDOWN_FILE = "compare.md"
_SMALLER = "pass a smaller --batch-size, or --device cpu"
_FOLDERS = re.compile(r"(?<![\w.:/])~?/(?:[^\s/:,;'\"]+/)*")


@dataclass(frozen=True)
class Comparison(Generic[W]):
    """Rows and tables of a comparison; the same stands in the files of ``output``."""

    output: Path
    dense: W
    rows: tuple[W, ...]
    sections: tuple[Section[W], ...]


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make the folder of a comparison, and let no other write it meanwhile; raises OutputError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be created: {error.strerror}") from error
    busy = f"another comparison is writing {output}: wait for it, or choose another output"
    lock = acquire_lock(output / ".lock", busy)
    try:
        yield
    finally:
        release_lock(lock)


class Comparing(ABC, Generic[R, W]):
    """One comparison."""

    def __init__(self, settings: Folds, run: type[R], row: type[W], notify: Notify, debug: bool) -> None:
        """Find the model, and what an earlier command left; ``dense_key`` is for the class below to set."""
        self.folds, self.notify, self.debug, self._run, self._row = settings, notify, debug, run, row
        self.source = locate(settings.model, settings.revision)
        self.checkpoint = Checkpoint.open(self.source.folder)
        self.results = Results.load(settings.output, run)
        self.dense_key = ""
        self.used: list[R] = []

    @abstractmethod
    def dense(self) -> dict[str, Any]:
        """Measure the dense model, as plain data."""

    @abstractmethod
    def work(self, config: Any) -> dict[str, Any]:
        """The options of a fold that decide its result, as plain data."""

    @abstractmethod
    def measured(self, config: Any) -> dict[str, Any]:
        """Fold, and measure: fields of a run."""

    @abstractmethod
    def outcome(self, run: R) -> str:
        """What a run found, in a line."""

    @abstractmethod
    def dense_row(self) -> W:
        """The row of the dense model."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What was measured on, for compare.json."""

    @abstractmethod
    def page(self, facts: Mapping[str, Any], sections: tuple[Section[W], ...]) -> Page:
        """What compare.md and report.html say; pictures are written beside them."""

    def run(self) -> Comparison[W]:
        """Do every fold that has no result yet."""
        settings = self.folds
        if settings.recompute or self.results.dense.get("key") != self.dense_key:
            with explain_oom(_SMALLER):
                self.results.dense = {"key": self.dense_key, **self.dense()}
        folds = list(settings.folds())
        for number, (amount, variant, seed) in enumerate(folds, 1):
            config = settings.fold_config(variant, amount, seed, self._place(variant, amount, seed))
            key = cache_key(self.dense_key, self.work(config))
            run, note = self._earlier(key, config.output_path), " (from an earlier run)"
            if run is None:
                run, note = self._fold(key, variant, amount, seed, config), ""
                self.results.runs[key] = run
            self.used.append(run)
            place = f"{number}/{len(folds)} {variant.label}, {describe(amount)}, seed {seed}"
            self.notify(f"{place}: {run.error or self.outcome(run)}{note}")
            self.results.save(self._facts(), self.rows())
        if not settings.keep:
            with suppress(OSError):  # folds of an earlier --keep are in it
                settings.models_folder.rmdir()
        return self._publish()

    def rows(self) -> list[W]:
        """A row for every method and amount so far."""
        groups: dict[tuple[str, ...], list[R]] = {}
        for run in self.used:
            groups.setdefault((run.method, describe(run.amount)), []).append(run)
        return [summarise(runs, self._row) for runs in groups.values()]

    def picture(self, name: str, content: str | None) -> str | None:
        """Write a chart into the output, or remove an earlier one where there is none; its name if it is there."""
        path = self.folds.output / name
        if content is None:
            path.unlink(missing_ok=True)
            return None
        write_text(path, content)
        return name

    def _earlier(self, key: str, output: Path) -> R | None:
        run = self.results.runs.get(key)
        lost = self.folds.keep and not output.exists()
        return None if self.folds.recompute or lost or run is None or run.error is not None else run

    def _fold(self, key: str, variant: Variant, amount: Amount, seed: int, config: Any) -> R:
        common: dict[str, Any] = {"key": key, "method": variant.label, "amount": amount, "seed": seed}
        output: Path = config.output_path
        try:
            with explain_oom(_SMALLER):
                return self._run(**common, **self.measured(config))
        except Exception as error:  # one method must not take the others with it
            expected = isinstance(error, LlmfoldError)
            if self.debug and not expected:
                raise
            shutil.rmtree(output.with_name(f".{output.name}.llmfold-partial"), ignore_errors=True)
            prefix = "" if expected else f"unexpected {type(error).__name__}: "
            return self._run(**common, error=_without_folders(f"{prefix}{error}"))
        finally:
            if not self.folds.keep:
                shutil.rmtree(output, ignore_errors=True)

    def _place(self, variant: Variant, amount: Amount, seed: int) -> Path:
        parts = [variant.label, *(f"{name}-{value:g}" for name, value in amount.items()), f"seed-{seed}"]
        return self.folds.models_folder / re.sub(r"[^\w.=-]+", "-", "-".join(parts))

    def _facts(self) -> dict[str, Any]:
        return {
            "command": self.folds.command(),
            "model": public_name(self.source),
            **self.facts(),
            "versions": versions(),
            "machine": machine_words(),
        }

    def _publish(self) -> Comparison[W]:
        rows, dense, output = self.rows(), self.dense_row(), self.folds.output
        sections = tuple(
            Section(describe(amount), [dense, *(row for row in rows if row.amount == amount)])
            for amount in self.folds.amounts()
        )
        page = self.page(self._facts(), sections)
        write_text(output / MARKDOWN_FILE, page.markdown())
        write_text(output / PAGE_FILE, page.html([(output / name).read_text("utf-8") for name in page.pictures]))
        return Comparison(output, dense, tuple(rows), sections)


def _without_folders(message: str) -> str:
    """A message without folders of this machine and in one line."""
    return _FOLDERS.sub("", " ".join(message.split()))
