"""Results of a comparison: what one fold measured, means over seeds, and the file that keeps them."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmfold.evaluation.cache import load_results, save_results
from llmfold.kinds import is_number

JSON_FILE = "compare.json"


@dataclass(frozen=True)
class AnyRun:
    """One fold of whatever kind of model; what was measured of it are the numbers of a class below this one.

    Attributes:
        key: digest of everything that decides the numbers.
        method: label of the variant.
        amount: how much was asked for, as options of a fold.
        seed: of the fold.
        error: why there are no numbers, in a sentence.
        data: what the fold looked at beside the weights.
    """

    key: str
    method: str
    amount: dict[str, float]
    seed: int
    error: str | None = None
    data: str = ""

    @classmethod
    def numbers(cls) -> "dict[str, Any]":
        """Names of what is measured, with the values where nothing was: None for what may be left out."""
        common = {each.name for each in fields(AnyRun)}
        return {each.name: each.default for each in fields(cls) if each.name not in common}


@dataclass(frozen=True)
class Run(AnyRun):
    """One fold of a language model.

    Attributes:
        perplexity: on the text.
        excess: log(perplexity / dense perplexity), nats per token.
        kl: KL(dense || folded) per token in nats.
        top1: fraction of tokens where both find the same token most likely.
        parameters: of the folded model, tied embeddings once.
        removed: fraction of all parameters that went.
        removed_decoder: fraction of the decoder layers' parameters that went.
        seconds: of the fold, its reload check left out.
    """

    perplexity: float = 0.0
    excess: float = 0.0
    kl: float | None = None
    top1: float | None = None
    parameters: int = 0
    removed: float = 0.0
    removed_decoder: float = 0.0
    seconds: float = 0.0


R = TypeVar("R", bound=AnyRun)


def _checked(run: R) -> R:
    """The same run; raises TypeError where a file gave it anything but texts and numbers."""
    texts = (run.key, run.method, run.data, run.error or "")
    measured = [(getattr(run, name), default) for name, default in run.numbers().items()]
    numbers = (run.seed, *run.amount.values(), *(x for x, default in measured if x is not None or default is not None))
    if not (all(isinstance(each, str) for each in texts) and all(is_number(each) for each in numbers)):
        raise TypeError("a run holds something else")
    return run


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and their sample standard deviation, which is zero for one seed."""

    mean: float
    deviation: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Mean and deviation of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class AnyRow:
    """A method at one amount: means and spreads over ``seeds`` folds; None for all numbers if every fold failed."""

    method: str
    amount: dict[str, float]
    seeds: int
    data: str = ""
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row(AnyRow):
    """Of a language model."""

    perplexity: Spread | None = None
    excess: Spread | None = None
    kl: Spread | None = None
    top1: Spread | None = None
    parameters: Spread | None = None
    removed: Spread | None = None
    removed_decoder: Spread | None = None
    seconds: Spread | None = None

    def removed_of(self, decoder: bool) -> Spread | None:
        """Fraction that went of the decoder layers' parameters, or of all."""
        return self.removed_decoder if decoder else self.removed


W = TypeVar("W", bound=AnyRow)


def summarise(runs: Sequence[AnyRun], kind: type[W]) -> W:
    """The row of all seeds of one method at one amount; its class has the numbers of the runs."""
    first, errors = runs[0], tuple(dict.fromkeys(run.error for run in runs if run.error))
    good = [run for run in runs if run.error is None]
    if not good:
        return kind(first.method, first.amount, 0, errors=errors)
    names = (name for name in first.numbers() if getattr(good[0], name) is not None)
    spreads: dict[str, Any] = {name: Spread.of([getattr(run, name) for run in good]) for name in names}
    return kind(first.method, first.amount, len(good), data=good[0].data, errors=errors, **spreads)


@dataclass
class Results(Generic[R]):
    """The content of compare.json.

    Attributes:
        folder: where the file is.
        dense: the dense model: key, what was measured of it and, in words, how.
        runs: every fold that was ever measured here, of earlier commands too, by key.
    """

    folder: Path
    dense: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, R] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, kind: type[R]) -> "Results[R]":
        """Read what an earlier command left in ``folder``, if anything.

        Raises:
            UsageError: the file there is not one of ours, or holds runs of another kind.
        """

        def parse(content: dict[str, Any]) -> Results[R]:
            runs = {run["key"]: _checked(kind(**run)) for run in content["runs"]}
            return cls(folder, dict(content["dense"]), runs)

        return load_results(folder / JSON_FILE, "comparison", parse) or cls(folder)

    def save(self, facts: dict[str, Any], rows: Sequence[AnyRow]) -> None:
        """Write compare.json whole or not at all; ``facts`` and ``rows`` are those of the running command."""
        parts = {"rows": [asdict(row) for row in rows], "runs": [asdict(run) for run in self.runs.values()]}
        save_results(self.folder / JSON_FILE, {**facts, "dense": self.dense, **parts})
