"""What to compare, and how: the options of ``llmfold compare`` in one frozen dataclass."""

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfold.config import RATIO_BASE, FoldConfig, HasOutput
from llmfold.data.plain_text import TEXT_COLUMN
from llmfold.errors import UsageError
from llmfold.evaluation.defaults import BATCH
from llmfold.evaluation.measuring import HEADING, MEASURING, Measuring, compute_dtype, options_in_order
from llmfold.experiments.variants import Variant, parse_variants
from llmfold.kinds import ANYTHING, SWITCH, TEXT, integer
from llmfold.options import check_options, command_words, flag, numbers, option, public_file
from llmfold.registry import SELF_DATA, method_facts

AMOUNTS = ("ratio", "mlp_ratio", "attention_ratio")
Amount = dict[str, float]
"""How much to remove, as options of :class:`FoldConfig`."""
WHAT, MUCH, AGAIN = "what", "much", "again"
GROUPS = {
    WHAT: "what to compare",
    MUCH: "how much to remove, one of them possibly several values",
    **HEADING,
    AGAIN: "results",
}


def describe(amount: Amount) -> str:
    """Render ``ratio 0.2, attention-ratio 0``."""
    return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in amount.items())


def _amount(help: str) -> Any:
    return option(help, ANYTHING, MUCH, (), parse=numbers)


class Folds(ABC):
    """What settings of comparisons share; the fields are those of a dataclass below this class."""

    model: str
    output: Path
    revision: str | None
    seeds: int
    keep: bool
    recompute: bool
    variants: tuple[Variant, ...]

    @abstractmethod
    def fold_config(self, variant: Variant, amount: Amount, seed: int, output: Path) -> HasOutput:
        """The options of one fold; raises UsageError where they do not go together."""

    def check(self) -> None:
        """Refuse options of any fold that do not go together; raises UsageError."""
        for amount in self.amounts():
            for variant in self.variants:
                self.fold_config(variant, amount, seed=0, output=self.models_folder)

    @property
    def models_folder(self) -> Path:
        """Where folds stand until they are evaluated: beside the output."""
        return self.output.with_name(f"{self.output.name}-models")

    def amounts(self) -> list[Amount]:
        """How much to remove, one entry for every table."""
        given = {name: amount for name in AMOUNTS if (amount := getattr(self, name, ()))}
        longest = max(map(len, given.values()), default=1)
        return [{name: v[min(i, len(v) - 1)] for name, v in given.items()} for i in range(longest)]

    def folds(self) -> Iterator[tuple[Amount, Variant, int]]:
        """Every fold of the comparison: amount, method and seed; one seed where it moves nothing."""
        for amount in self.amounts():
            for variant in self.variants:
                for seed in range(self.seeds if self.moves(variant) else 1):
                    yield amount, variant, seed

    def moves(self, variant: Variant) -> bool:
        """Whether seeds move a variant."""
        return variant.random

    def command(self) -> str:
        """The command line of this comparison, files by their names only."""
        deciding = (pair for pair in options_in_order(self) if pair[1].group != AGAIN)
        return shlex.join(["llmfold", "compare", *command_words(deciding, vars(self), self._spell)])

    def _spell(self, name: str, value: Any) -> str:
        if name in AMOUNTS:
            return ",".join(f"{v:g}" for v in value)
        if name == "methods":
            return ",".join(v.label for v in self.variants)
        if name == "model":
            local = os.path.expanduser(self.model)
            return os.path.basename(os.path.realpath(local)) if os.path.isdir(local) else self.model
        return self.output.name if name == "output" else public_file(str(value))


@dataclass(frozen=True)
class Settings(Measuring, Folds):
    """Options of a comparison."""

    model: str = option("local folder, hub id, or 'demo'", TEXT, WHAT)
    methods: str = option("names with commas between, see 'llmfold methods'; one may carry options", TEXT, WHAT)
    text: str = option("text file for perplexity, or 'wikitext'", TEXT, WHAT)
    output: Path = option("folder to write", ANYTHING, WHAT, parse=Path)  # noqa: RUF009 - it is a field
    ratio: tuple[float, ...] = _amount("fraction of parameters, e.g. 0.2 or 0.1,0.2,0.3")
    mlp_ratio: tuple[float, ...] = _amount("fraction of MLP neurons in every layer")
    attention_ratio: tuple[float, ...] = _amount("fraction of KV groups in every layer")
    ratio_of: str = option("what fractions count", RATIO_BASE, MUCH, "model")
    revision: str | None = option("branch, tag or commit on the hub", TEXT, WHAT, None)
    data: str | None = option("text file or hub data set of the methods that measure on text", TEXT, WHAT, None)
    text_column: str = option("column of the text, where --text or --data is a table", TEXT, WHAT, TEXT_COLUMN)
    seeds: int = option("fold with the seeds 0 to N - 1 where anything is random", integer(1), WHAT, 3)
    batch_size: int = option("windows in one forward pass", integer(1), MEASURING, BATCH)
    compute_dtype: str = compute_dtype("float32")
    num_samples: int | None = option("sequences that methods measure on", ANYTHING, MUCH, None, parse=int)
    multiple_of: int | None = option("MLP widths are multiples of this", ANYTHING, MUCH, None, parse=int)
    keep: bool = option("leave the folded models in OUTPUT-models", SWITCH, AGAIN, False)
    recompute: bool = option("do not use results that the output already holds", SWITCH, AGAIN, False)
    variants: tuple[Variant, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model; raises UsageError."""
        object.__setattr__(self, "variants", parse_variants(self.methods, Variant))
        if sum(len(getattr(self, name)) > 1 for name in AMOUNTS) > 1:
            raise UsageError(f"only one of {', '.join(map(flag, AMOUNTS))} may have several values")
        check_options(self)
        self.check()
        if self.data is not None and not any(map(self._data_of, self.variants)):
            raise UsageError(f"--data is used by none of {self.methods}: leave it out")

    def moves(self, variant: Variant) -> bool:
        """See :class:`Folds`: the model's own text, where that is the data of all, is drawn by the seed too."""
        return variant.random or self._data_of(variant) == SELF_DATA

    def _data_of(self, variant: Variant) -> str | None:
        """What a variant measures on."""
        data: str | None = variant.fold_options(self.data).get("data")
        return data

    def fold_config(self, variant: Variant, amount: Amount, seed: int, output: Path) -> FoldConfig:
        """The options of one fold. Its reload check is of shapes only, since the model is loaded and run at once.

        Raises:
            UsageError: options that do not go together.
        """
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("ratio_of", "revision", "compute_dtype", "device")
        }
        common.update(multiple_of=self.multiple_of, **amount)
        if "num_samples" in method_facts(variant.method).options:
            common.update(num_samples=self.num_samples)
        options = variant.fold_options(self.data, self.text_column, **common)
        return FoldConfig(
            self.model, **options, seed=seed, output=str(output), overwrite=True, verify="shapes", fidelity_tokens=0
        )
