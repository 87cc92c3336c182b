"""Every option of a fold, in one frozen dataclass. Command line, recipe file and Python share these names."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from llmfold.effort import DEFAULT_EFFORT, EFFORTS
from llmfold.errors import UsageError
from llmfold.kinds import ANYTHING, FRACTION, SWITCH, TEXT, choice, integer, integer_or, is_integer, number, one_of
from llmfold.options import check_options, numbers, option, options_of, spelled
from llmfold.registry import SELF_DATA, MethodFacts, Parallel, method_facts, names, users
from llmfold.sizes import parse_size

DTYPES = ("auto", "float32", "float16", "bfloat16")
COMPUTE_DTYPE = choice(*DTYPES)
RATIO_BASE = choice("model", "decoder")
AFTERWARDS = ("fidelity_tokens", "eval", "eval_text", "eval_data_dir", "eval_limit")
"""Options of what is measured when the fold is done."""
OF_SAMPLING = ("temperature", "max_memory")
"""Options of folds that sample from the model, be it by their method or by their data."""
EVAL_TASKS = "wikitext2,folding"
"""Tasks of ``eval`` where it is only said that there be any."""
SPEED = "speed"
"""The task of ``eval`` that reads no text."""
WHAT, MUCH, HOW, RUN, AFTER = "what", "much", "how", "run", "after"
GROUPS = {
    WHAT: "what to fold",
    MUCH: "how much to remove",
    HOW: "how to fold",
    RUN: "the run",
    AFTER: "what to measure afterwards",
}


@dataclass(frozen=True)
class LayerOverride:
    """Fractions removed in one layer by a recipe; ``None`` takes the recipe's common fraction, or removes nothing."""

    mlp: float | None = None
    attention: float | None = None


@dataclass(frozen=True)
class FoldConfig:
    """Options of a fold."""

    model: str = option("local folder, hub id, or 'demo' for the checkpoint that ships with llmfold", TEXT, WHAT)
    ratio: float | None = option(
        "fraction of parameters to remove, e.g. 0.2, or several: 0.1,0.2,0.3", FRACTION, MUCH, None, parse=numbers
    )
    output: str | None = option(
        "folder to write (default: MODEL-folded-RATIO here); with several ratios, the folder that holds theirs",
        TEXT,
        WHAT,
        None,
    )
    revision: str | None = option("branch, tag or commit on the hub", TEXT, WHAT, None)
    method: str = option(
        "what decides and repairs, see 'llmfold methods' (default: self)", one_of(lambda: names()), HOW, "self"
    )
    cluster: Literal["ward", "kmeans", "hartigan"] = option(
        "clustering of units; hartigan is Ward, refined", choice("ward", "kmeans", "hartigan"), HOW, "ward"
    )
    align: str | None = option(
        "gauge: bring units to a common gauge before merging (default: none, as published)",
        choice("gauge", "none"),
        HOW,
        None,
    )
    repair: str = option(
        "variance: the paper's Fold-AR correction after merging", choice("none", "variance"), HOW, "none"
    )
    allocation: str = option(
        "adaptive: every layer its own measured width, which needs a modelling file; uniform widths load as stock",
        choice("uniform", "adaptive"),
        MUCH,
        "uniform",
    )
    depth: int | str = option(
        "whole blocks that go, as part of --ratio; auto: as many as lose least, together with the widths",
        integer_or("off", "auto"),
        MUCH,
        "off",
    )
    ratio_of: str = option(
        "what --ratio counts: the whole model, or its decoder layers only", RATIO_BASE, MUCH, "model"
    )
    data: str | None = option(
        "text file or hub data set of methods that measure on text; 'self' lets baselines use the model's own tokens",
        ANYTHING,
        HOW,
        None,
    )
    text_column: str = option(
        "column of the text, where --data or --eval-text is a table (.jsonl, .json, .parquet, .csv, .tsv) or data set",
        TEXT,
        HOW,
        "text",
    )
    bias: bool = option("flap without its bias compensation", SWITCH, HOW, True)
    temperature: float = option("of sampling; 1 follows the model, less is cleaner text", number(0, 10), HOW, 0.9)
    effort: str = option(
        "how much to measure and refine; 'plan' tells the times", choice(*EFFORTS), HOW, DEFAULT_EFFORT
    )
    num_samples: int | None = option("sequences to measure on (default: by --effort)", integer(1), HOW, None)
    sequence_length: int | None = option("tokens per sequence (default: by --effort)", integer(2), HOW, None)
    refine: int | None = option(
        "gradient steps on what is left of every MLP; 0: closed form only (default: by --effort)", integer(0), HOW, None
    )
    mlp_ratio: float | None = option(
        "fraction of MLP neurons to remove in every layer, in place of the planner's", FRACTION, MUCH, None
    )
    attention_ratio: float | None = option(
        "fraction of KV groups to remove in every layer, in place of the planner's", FRACTION, MUCH, None
    )
    multiple_of: int | None = option(
        "MLP widths are multiples of this (default: 128 in layers 1,024 wide or more, else 1)", integer(1), MUCH, None
    )
    tensor_parallel: int = option("keep widths and head counts divisible by N devices", integer(1), MUCH, 1)
    layers: Mapping[int, LayerOverride] = field(default_factory=dict)
    seed: int = option("seed of everything random", integer(0, 2**63, shown="2^63"), HOW, 0)
    dtype: str = option("dtype written (default: auto, as stored)", choice(*DTYPES), HOW, "auto")
    compute_dtype: str = option(
        "dtype of forward passes (default: auto, as stored where the device multiplies that, else float32)",
        COMPUTE_DTYPE,
        HOW,
        "auto",
    )
    device: str = option("torch device (default: auto, CUDA when present)", TEXT, HOW, "auto")
    max_memory: int | str | None = option(
        "hold no more of the model to sample: 4GiB, or 0=20GiB,cpu=8GiB by device", ANYTHING, RUN, None
    )
    max_shard_size: int | str = option("largest file of weights", ANYTHING, RUN, "5GB")
    verify: str = option("reload check before publishing", choice("full", "shapes", "off"), RUN, "full")
    overwrite: bool = option("replace an earlier llmfold output or partial run", SWITCH, WHAT, False)
    trust_remote_code: bool = option(
        "copy Python files that the checkpoint carries; llmfold never runs them", SWITCH, RUN, False
    )
    fidelity_tokens: int = option(
        "tokens of the dense model to compare on; 0: no comparison, no continued prompts", integer(0), AFTER, 2048
    )
    eval: str | None = option(f"tasks of 'llmfold eval' (default: {EVAL_TASKS})", TEXT, AFTER, None, const=EVAL_TASKS)
    eval_text: str | None = option("text file in place of WikiText-2", ANYTHING, AFTER, None)
    eval_data_dir: str | None = option("folder of JSON lines in place of the hub", ANYTHING, AFTER, None)
    eval_limit: int | None = option("first N documents of every task only", integer(1), AFTER, None)

    def __post_init__(self) -> None:
        """Check every value; raises UsageError naming the option."""
        object.__setattr__(self, "eval", _tasks(self.eval))
        if self.depth is False:  # what YAML makes of off
            object.__setattr__(self, "depth", "off")
        check_options(self)
        for index, override in self.layers.items():
            if not is_integer(index) or index < 0:
                raise UsageError(f"layers: {index!r} is not the index of a layer")
            check_fraction(override.mlp, f"layers: {index}: mlp")
            check_fraction(override.attention, f"layers: {index}: attention")
        if self.eval is None and (self.eval_text, self.eval_data_dir, self.eval_limit) != (None, None, None):
            raise UsageError("--eval-text, --eval-data-dir and --eval-limit shape --eval, which is missing")
        if self.allocation == "adaptive" and not self.measures:
            able = ", ".join(names(lambda method: method.measures))
            raise UsageError(
                f"--allocation adaptive measures where to remove what: it needs --method {able} and "
                "--ratio without --mlp-ratio"
            )
        self._check_data()
        self._check_uses()
        self._check_depth()
        fractions = (self.ratio, self.mlp_ratio, self.attention_ratio)
        if fractions == (None, None, None) and not self.layers and not self.removes_blocks:
            raise UsageError("nothing says how much to remove; pass --ratio, for example --ratio 0.2")
        if self.ratio is None and self.ratio_of != "model":
            raise UsageError("--ratio-of says what --ratio counts, which is missing; leave it out")
        self.facts.check(vars(self))
        self.shard_bytes, self.memory_limits  # noqa: B018 - refuse a malformed size now, not after the clustering

    def _check_depth(self) -> None:
        """Refuse what cannot be had beside whole blocks that go."""
        if self.depth == "auto" and not self.measures:
            raise UsageError(
                "--depth auto weighs blocks against widths: it needs --ratio, without --mlp-ratio or, unless under "
                "--allocation adaptive, --attention-ratio"
            )
        if self.removes_blocks and self.layers:
            raise UsageError("--depth renumbers the layers that a recipe names: leave one of the two out")

    def _check_uses(self) -> None:
        """Refuse options that would change nothing."""
        for each, _ in options_of(self):
            if self.uses(each.name) or getattr(self, each.name) == each.default:
                continue
            if each.name in OF_SAMPLING:
                where = "where the model samples its own tokens: under --method self or --data self"
            elif each.name == "text_column":
                where = "on outside text: with --data or --eval-text"
            else:
                where = f"by --method {', '.join(users(each.name))}"
            raise UsageError(
                f"{spelled(each)} is used {where}, not by {self.method} as it is asked for here; leave it out"
            )

    def _check_data(self) -> None:
        """Outside text is used where the method says so, and nowhere else."""
        facts = self.facts
        if facts.needs_data and self.data is None:
            sampled = "" if facts.folds else ", or self for tokens sampled from the model"
            raise UsageError(f"--method {self.method} needs --data: a text file or a hub data set{sampled}")
        if not facts.needs_data and self.data is not None:
            raise UsageError(f"--method {self.method} uses no data: drop --data, or pass --method calibrated")

    @property
    def facts(self) -> MethodFacts:
        """What is known of the method."""
        return method_facts(self.method)

    @property
    def shard_bytes(self) -> int:
        """Largest shard in bytes."""
        return parse_size(self.max_shard_size)

    @property
    def memory_limits(self) -> dict[int | str, int]:
        """Bytes by device index or ``"cpu"`` as ``max_memory`` has them; ``"all"`` where one size is for everything.

        Raises:
            UsageError: a size or a device that is none.
        """
        limits: dict[int | str, int] = {}
        for item in str(self.max_memory).split(",") if self.max_memory is not None else ():
            device, named, size = item.rpartition("=")
            if named and device != "cpu" and not device.isdecimal():
                raise UsageError(f"--max-memory: {device!r} is no device; write 4GiB, or 0=20GiB,cpu=8GiB")
            limits["all" if not named else int(device) if device.isdecimal() else device] = parse_size(size)
        return limits

    @property
    def measures(self) -> bool:
        """Whether the split of the ratio between MLPs, heads and layers is measured before the plan is made."""
        heads_settle = self.attention_ratio is not None and self.allocation != "adaptive"
        return self.facts.measures and bool(self.ratio) and self.mlp_ratio is None and not heads_settle

    @property
    def removes_blocks(self) -> bool:
        """Whether whole blocks may go."""
        return self.depth != "off"

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled from the model."""
        return self.facts.samples or self.data == SELF_DATA

    @property
    def reads_text(self) -> bool:
        """Whether ``data`` is outside text."""
        return self.data not in (None, SELF_DATA)

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a text is read, to measure on or by a task of ``eval``."""
        return self.reads_text or not set(task_names(self.eval)) <= {SPEED}

    def uses(self, name: str) -> bool:
        """Whether an option changes anything under this method and data."""
        if name in OF_SAMPLING:
            return self.samples
        if name == "text_column":
            return self.reads_text or self.eval_text is not None
        return name in self.facts.options or not users(name)

    @property
    def replans(self) -> bool:
        """Whether what is measured before the first layer changes the plan."""
        return self.measures or self.facts.replans or self.removes_blocks

    @property
    def independent(self) -> bool:
        """Whether layers may be folded in any order, and dealt out to several processes."""
        return self.facts.parallel is not Parallel.NONE

    @property
    def together(self) -> bool:
        """Whether several processes share hidden states, which one machine must hold."""
        return self.facts.parallel is Parallel.ROWS

    @property
    def alignment(self) -> str:
        """The alignment in force: the published method aligns nothing unless told to."""
        return self.align or "none"

    @property
    def output_path(self) -> Path:
        """Where the folded checkpoint goes."""
        return output_path(self.model, self.ratio, self.output)

    def work(self) -> dict[str, Any]:
        """The options that decide the bytes of the output; two runs that agree on them can resume one another."""
        values = dataclasses.asdict(self)
        for name in ("output", "overwrite", "verify", *AFTERWARDS):
            del values[name]
        if not self.reads_text:
            del values["text_column"]
        values["align"] = self.alignment
        values["layers"] = {str(i): values["layers"][i] for i in sorted(self.layers)}
        return values


def output_path(model: str, ratio: float | None, output: str | None) -> Path:
    """Where the fold of a model goes: ``output`` if it is named, else ``MODEL-folded-RATIO``."""
    if output is not None:
        return Path(os.path.expanduser(output))
    local = os.path.expanduser(model)
    stem = os.path.basename(os.path.realpath(local)) if os.path.exists(local) else model.split("/")[-1]
    amount = "custom" if ratio is None else f"{ratio:g}"
    return Path(f"{stem}-folded-{amount}")


class HasOutput(Protocol):
    """Options of a fold, a frozen dataclass, among them its ratio and its output."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def output(self) -> str | None:
        """The folder that was named."""

    @property
    def output_path(self) -> Path:
        """Where the folded checkpoint goes."""


Config = TypeVar("Config", bound=HasOutput)


def sweep_configs(config: Config, ratios: Sequence[float]) -> list[Config]:
    """One config per ratio; an output that was named becomes the folder that holds them, under their default names.

    Raises:
        UsageError: a ratio that stands twice, or is none.
    """
    if getattr(config, "depth", "off") == "auto" and len(ratios) > 1:
        raise UsageError("--depth auto chooses for one --ratio: run once for each, or say how many blocks go")
    if len(set(ratios)) < len(ratios):
        raise UsageError(f"--ratio names {max(ratios, key=list(ratios).count):g} twice")
    configs = []
    for ratio in ratios:
        named = dataclasses.replace(config, ratio=ratio, output=None)
        parent = Path() if config.output is None else config.output_path
        configs.append(dataclasses.replace(named, output=str(parent / named.output_path.name)))
    return configs


def check_fraction(value: Any, name: str) -> None:
    """Raise UsageError unless ``value`` is None or a number in [0, 1)."""
    if value is not None:
        FRACTION.check(name, value)


def task_names(tasks: str | None) -> list[str]:
    """Names of tasks with commas between."""
    return [] if tasks is None else [name.strip() for name in tasks.split(",")]


def _tasks(given: Any) -> Any:
    """Tasks of ``eval`` with commas between, as Python and a recipe may give them: as a list, or true for the usual."""
    if isinstance(given, list | tuple) and all(isinstance(each, str) for each in given):
        return ",".join(given)
    if isinstance(given, bool):
        return EVAL_TASKS if given else None
    return given
