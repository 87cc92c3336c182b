"""What to compare, and how: the options of ``llmfold compare`` in one frozen dataclass."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llmfold.checkpoint.locate import public_file
from llmfold.config import USED_BY, FoldConfig, check_compute_dtype, option
from llmfold.errors import UsageError
from llmfold.evaluation.defaults import BATCH, FIDELITY_TOKENS
from llmfold.experiments.variants import Variant, parse_variants

AMOUNTS = ("ratio", "mlp_ratio", "attention_ratio")
Amount = dict[str, float]
"""How much to remove, as options of :class:`FoldConfig`."""


def describe(amount: Amount) -> str:
    """Render ``ratio 0.2, attention-ratio 0``."""
    return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in amount.items())


@dataclass(frozen=True)
class Settings:
    """Options of a comparison.

    Attributes:
        model: local folder, hub id or ``demo``.
        methods: names of methods, each with options of its own; see :func:`parse_variants`.
        text: file to measure perplexity on, or ``wikitext``.
        output: folder for compare.md, compare.json and compare.svg.
        ratio, mlp_ratio, attention_ratio: as of a fold; one of them may have several values.
        ratio_of: what ``ratio`` and the fractions in the table count.
        revision: branch, tag or commit on the hub.
        data: text for the methods that measure on outside text.
        seeds: every method in which anything is random is folded with the seeds 0 … seeds - 1.
        windows: most windows of the text to score; None for all.
        sequence_length: tokens in a window; None: 2,048 or the model's maximum.
        stride: of the windows; None if they do not overlap.
        batch_size: windows in one forward pass.
        compute_dtype: in which all models are evaluated and the folds run their forward passes.
        device: of folds and evaluation.
        fidelity_tokens: about how many tokens to sample from the dense model for KL and top-1; 0 for neither.
        num_samples, multiple_of: as of a fold, for all methods that use them.
        keep: leave the folded models in the folder OUTPUT-models.
        recompute: do not use results that compare.json already holds.
    """

    model: str
    methods: str
    text: str
    output: Path
    ratio: tuple[float, ...] = ()
    mlp_ratio: tuple[float, ...] = ()
    attention_ratio: tuple[float, ...] = ()
    ratio_of: str = "model"
    revision: str | None = None
    data: str | None = None
    seeds: int = 3
    windows: int | None = None
    sequence_length: int | None = None
    stride: int | None = None
    batch_size: int = BATCH
    compute_dtype: str = "float32"
    device: str = "auto"
    fidelity_tokens: int = FIDELITY_TOKENS
    num_samples: int | None = None
    multiple_of: int | None = None
    keep: bool = False
    recompute: bool = False
    variants: tuple[Variant, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model; raises UsageError."""
        object.__setattr__(self, "variants", parse_variants(self.methods))
        if sum(len(getattr(self, name)) > 1 for name in AMOUNTS) > 1:
            raise UsageError(f"only one of {', '.join(map(option, AMOUNTS))} may have several values")
        for name, least in (("seeds", 1), ("batch_size", 1), ("fidelity_tokens", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{option(name)} is {getattr(self, name)}; give at least {least}")
        check_compute_dtype(self.compute_dtype)
        for amount in self.amounts():
            for variant in self.variants:
                self.fold_config(variant, amount, seed=0, output=self.models_folder)

    @property
    def models_folder(self) -> Path:
        """Where folds stand until they are evaluated: beside the output."""
        return self.output.with_name(f"{self.output.name}-models")

    def amounts(self) -> list[Amount]:
        """How much to remove, one entry for every table."""
        given = {name: getattr(self, name) for name in AMOUNTS if getattr(self, name)}
        longest = max(map(len, given.values()), default=1)
        return [{name: v[min(i, len(v) - 1)] for name, v in given.items()} for i in range(longest)]

    def folds(self) -> Iterator[tuple[Amount, Variant, int]]:
        """Every fold of the comparison: amount, method and seed; one seed where it moves nothing."""
        for amount in self.amounts():
            for variant in self.variants:
                for seed in range(self.seeds if variant.random else 1):
                    yield amount, variant, seed

    def fold_config(self, variant: Variant, amount: Amount, seed: int, output: Path) -> FoldConfig:
        """The options of one fold. Its reload check is of shapes only, since the model is loaded and run at once.

        Raises:
            UsageError: options that do not go together.
        """
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("ratio_of", "revision", "compute_dtype", "device")
        }
        common.update(multiple_of=self.multiple_of, **amount)
        if variant.method in USED_BY["num_samples"]:
            common.update(num_samples=self.num_samples)
        options = variant.fold_options(self.data, **common)
        return FoldConfig(
            self.model, **options, seed=seed, output=str(output), overwrite=True, verify="shapes", fidelity_tokens=0
        )

    def command(self) -> str:
        """The command line of this comparison, files by their names only."""
        words = ["llmfold", "compare"]
        for f in fields(self):
            value = getattr(self, f.name)
            if not f.init or f.name in ("keep", "recompute") or value == f.default:
                continue
            words += [option(f.name), self._spell(f.name, value)]
        return shlex.join(words)

    def _spell(self, name: str, value: Any) -> str:
        if name in AMOUNTS:
            return ",".join(f"{v:g}" for v in value)
        if name == "methods":
            return ",".join(v.label for v in self.variants)
        if name == "model":
            local = os.path.expanduser(self.model)
            return os.path.basename(os.path.realpath(local)) if os.path.isdir(local) else self.model
        return self.output.name if name == "output" else public_file(str(value))
