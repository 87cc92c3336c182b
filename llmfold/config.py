"""Every option of a fold, in one frozen dataclass. Command line, recipe file and Python share these names."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfold.effort import DEFAULT_EFFORT, EFFORTS
from llmfold.errors import UsageError
from llmfold.sizes import parse_size

if TYPE_CHECKING:
    from llmfold.clustering import Method

FOLDS = ("self", "weights", "paper", "calibrated")
BASELINES = ("random", "magnitude", "wanda-sp", "flap", "flap-uniform", "llm-pruner")
METHODS = (*FOLDS, *BASELINES)
WITH_DATA = ("calibrated", "wanda-sp", "flap", "flap-uniform", "llm-pruner")
SELF_DATA = "self"
MEASURING = ("self", "weights", "calibrated")
WEIGHING = ("self", "calibrated")
CARRYING = ("wanda-sp",)
"""Methods whose hidden states run from layer to layer; under all others a layer depends on no other."""
CLUSTERS = ("ward", "kmeans", "hartigan")
ALIGNMENTS = ("gauge", "none")
REPAIRS = ("none", "variance")
ALLOCATIONS = ("uniform", "adaptive")
RATIO_BASES = ("model", "decoder")
DTYPES = ("auto", "float32", "float16", "bfloat16")
VERIFICATIONS = ("full", "shapes", "off")
AFTERWARDS = ("fidelity_tokens", "eval", "eval_text", "eval_data_dir", "eval_limit")
"""Options of what is measured when the fold is done."""

_ON_TOKENS = ("self", *WITH_DATA)
USED_BY = {
    "cluster": ("paper",),
    "align": ("paper",),
    "repair": ("paper",),
    "bias": ("flap", "flap-uniform"),
    "refine": ("self", "calibrated"),
    "num_samples": _ON_TOKENS,
    "sequence_length": _ON_TOKENS,
    "effort": ("weights", *_ON_TOKENS),
}
"""Methods by the options that not all of them use."""
_OF_SAMPLING = ("temperature", "max_memory")
"""Options of folds that sample from the model, be it by their method or by their data."""

_CHOICES = {
    "method": METHODS,
    "cluster": CLUSTERS,
    "align": (None, *ALIGNMENTS),
    "repair": REPAIRS,
    "allocation": ALLOCATIONS,
    "ratio_of": RATIO_BASES,
    "dtype": DTYPES,
    "compute_dtype": DTYPES,
    "verify": VERIFICATIONS,
    "effort": tuple(EFFORTS),
}


@dataclass(frozen=True)
class LayerOverride:
    """Fractions removed in one layer by a recipe; ``None`` takes the recipe's common fraction, or removes nothing."""

    mlp: float | None = None
    attention: float | None = None


@dataclass(frozen=True)
class FoldConfig:
    """Options of a fold.

    Attributes:
        model: local folder, hub id, or ``"demo"`` for the checkpoint that ships with llmfold.
        ratio: fraction of parameters to remove, in [0, 1); ``None`` when other options say it all.
        output: folder to write; ``None`` derives ``<model>-folded-<ratio>`` in the working directory.
        revision: branch, tag or commit on the hub.
        method: how units are chosen and merged; see ``METHODS``.
        cluster: clustering of units: ``ward``, ``kmeans`` or ``hartigan`` (Ward, refined).
        align: bring units to a common ``gauge`` before ``paper`` merges them; ``None`` is ``none``, as published.
        repair: correction after merging; ``variance`` is the paper's Fold-AR.
        allocation: ``uniform`` widths load in stock configs; ``adaptive`` gives every layer its own measured widths.
        ratio_of: whether ``ratio`` counts the whole ``model`` or its ``decoder`` layers only.
        data: text file or hub data set of ``calibrated`` and the baselines that measure; ``self`` lets those use tokens
            sampled from the model.
        bias: write the bias compensation of ``flap`` and ``flap-uniform``.
        temperature: of sampling; 1 follows the model, less is cleaner text.
        effort: ``quick``, ``normal`` or ``best``: how many tokens to measure on, and how many steps to refine for; see
            :data:`llmfold.effort.EFFORTS`.
        num_samples: sequences to measure on; ``None`` leaves them to ``effort``, as with the next two.
        sequence_length: tokens per sequence.
        refine: gradient steps on what is left of every MLP under ``self`` and ``calibrated``; 0 for the closed form.
        mlp_ratio: fraction of intermediate neurons removed in every layer, overriding the planner.
        attention_ratio: fraction of key/value groups removed in every layer, overriding the planner.
        multiple_of: MLP widths are multiples of this; ``None``: 128 where the layer is 1,024 wide or more, else 1.
        tensor_parallel: MLP widths, query heads and KV heads stay divisible by this many devices.
        layers: overrides by layer index.
        seed: seed of everything random.
        dtype: dtype of the folded tensors; ``auto`` keeps each tensor's own.
        compute_dtype: dtype of sampling, of forward passes and of what is measured afterwards; ``auto`` goes by device
            and processor, see :func:`llmfold.runtime.devices.compute_dtype`.
        device: torch device of the computation; ``auto`` is CUDA when present.
        max_memory: how much of the model may be held while tokens are sampled from it, the rest being read from disk
            for every token: a size such as ``"4GiB"`` for every device and the host, or by device as in
            ``"0=20GiB,cpu=8GiB"``; ``None``: what is free.
        max_shard_size: bytes, or a size such as ``"5GB"``.
        verify: reload check: ``full``, ``shapes`` or ``off``.
        overwrite: replace an earlier output, and discard a partial run with other options.
        trust_remote_code: also copy Python files that the checkpoint carries. llmfold never runs them.
        fidelity_tokens: about how many tokens to sample from the dense model to say how close the folded one is, with a
            few prompts continued by both; 0 for neither. Left out where the dense model does not fit in memory.
        eval: tasks to measure both models on afterwards; see ``llmfold eval``.
        eval_text, eval_data_dir, eval_limit: ``--text``, ``--data-dir`` and ``--limit`` of that evaluation.
    """

    model: str
    ratio: float | None = None
    output: str | None = None
    revision: str | None = None
    method: str = "self"
    cluster: "Method" = "ward"
    align: str | None = None
    repair: str = "none"
    allocation: str = "uniform"
    ratio_of: str = "model"
    data: str | None = None
    bias: bool = True
    temperature: float = 0.9
    effort: str = DEFAULT_EFFORT
    num_samples: int | None = None
    sequence_length: int | None = None
    refine: int | None = None
    mlp_ratio: float | None = None
    attention_ratio: float | None = None
    multiple_of: int | None = None
    tensor_parallel: int = 1
    layers: Mapping[int, LayerOverride] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "auto"
    compute_dtype: str = "auto"
    device: str = "auto"
    max_memory: int | str | None = None
    max_shard_size: int | str = "5GB"
    verify: str = "full"
    overwrite: bool = False
    trust_remote_code: bool = False
    fidelity_tokens: int = 2048
    eval: str | None = None
    eval_text: str | None = None
    eval_data_dir: str | None = None
    eval_limit: int | None = None

    def __post_init__(self) -> None:
        """Check every value; raises UsageError naming the option."""
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"{option(name)} is {value!r}; choose from {', '.join(str(c) for c in choices if c)}")
        for name in ("ratio", "mlp_ratio", "attention_ratio"):
            check_fraction(getattr(self, name), option(name))
        for name in ("model", "output", "revision", "device"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in ("output", "revision")):
                raise UsageError(f"{option(name)} is {value!r}; give a text")
        if not _is_number(self.temperature) or not 0 < self.temperature <= 10:
            raise UsageError(f"--temperature is {self.temperature!r}; give a number in (0, 10]")
        for name in ("bias", "overwrite", "trust_remote_code"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{option(name)} is {getattr(self, name)!r}; give true or false")
        for index, override in self.layers.items():
            if not _is_int(index) or index < 0:
                raise UsageError(f"layers: {index!r} is not the index of a layer")
            check_fraction(override.mlp, f"layers: {index}: mlp")
            check_fraction(override.attention, f"layers: {index}: attention")
        for name, least in (
            ("multiple_of", 1),
            ("tensor_parallel", 1),
            ("num_samples", 1),
            ("sequence_length", 2),
            ("refine", 0),
            ("fidelity_tokens", 0),
        ):
            value = getattr(self, name)
            if value is not None and (not _is_int(value) or value < least):
                raise UsageError(f"{option(name)} is {value!r}; give an integer of at least {least}")
        if self.eval is None and (self.eval_text, self.eval_data_dir, self.eval_limit) != (None, None, None):
            raise UsageError("--eval-text, --eval-data-dir and --eval-limit shape --eval, which is missing")
        if self.allocation == "adaptive" and not self.measures:
            raise UsageError(
                f"--allocation adaptive measures where to remove what: it needs --method {', '.join(MEASURING)} and "
                "--ratio without --mlp-ratio and --attention-ratio"
            )
        self._check_data()
        self._check_uses()
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed!r}; give an integer in [0, 2^63)")
        if self.ratio is None and self.mlp_ratio is None and self.attention_ratio is None and not self.layers:
            raise UsageError("nothing says how much to remove; pass --ratio, for example --ratio 0.2")
        if self.tensor_parallel > 1 and self.method == "flap":
            raise UsageError("--method flap finds widths that no --tensor-parallel divides; use flap-uniform")
        self.shard_bytes, self.memory_limits  # noqa: B018 - refuse a malformed size now, not after the clustering

    def _check_uses(self) -> None:
        """Refuse options that would change nothing."""
        for f in dataclasses.fields(self):
            if self.uses(f.name) or getattr(self, f.name) == f.default:
                continue
            name = "--no-bias" if f.name == "bias" else option(f.name)
            if f.name in _OF_SAMPLING:
                where = "where the model samples its own tokens: under --method self or --data self"
            else:
                where = f"by --method {', '.join(USED_BY[f.name])}"
            raise UsageError(f"{name} is used {where}, not by {self.method} as it is asked for here; leave it out")

    def _check_data(self) -> None:
        """Outside text is used where the method says so, and nowhere else."""
        if self.method in WITH_DATA and self.data is None:
            sampled = ", or self for tokens sampled from the model" if self.method in BASELINES else ""
            raise UsageError(f"--method {self.method} needs --data: a text file or a hub data set{sampled}")
        if self.method not in WITH_DATA and self.data is not None:
            raise UsageError(f"--method {self.method} uses no data: drop --data, or pass --method calibrated")
        if self.method == "calibrated" and self.data == SELF_DATA:
            raise UsageError("--method calibrated wants outside text: for tokens of the model's own use --method self")
        if self.method == "flap" and self.layers:
            raise UsageError("--method flap finds the widths of every layer itself; for a recipe use flap-uniform")

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
        split_given = self.mlp_ratio is not None or self.attention_ratio is not None
        return self.method in MEASURING and bool(self.ratio) and not split_given

    @property
    def weighs(self) -> bool:
        """Whether units are chosen by what their loss does to the model's predictions."""
        return self.method in WEIGHING

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled from the model."""
        return SELF_DATA in (self.method, self.data)

    def uses(self, name: str) -> bool:
        """Whether an option changes anything under this method and data."""
        return self.samples if name in _OF_SAMPLING else self.method in USED_BY.get(name, METHODS)

    @property
    def replans(self) -> bool:
        """Whether what is measured before the first layer changes the plan."""
        return self.measures or self.method in ("flap", "flap-uniform")

    @property
    def independent(self) -> bool:
        """Whether layers may be folded in any order, and dealt out to several processes."""
        return self.method not in CARRYING

    @property
    def together(self) -> bool:
        """Whether several processes share hidden states, which one machine must hold."""
        return self.method in MEASURING

    @property
    def shared(self) -> bool:
        """Whether several processes share the work at all."""
        return self.independent

    @property
    def alignment(self) -> str:
        """The alignment in force: the published method aligns nothing unless told to."""
        return self.align or "none"

    @property
    def output_path(self) -> Path:
        """Where the folded checkpoint goes."""
        if self.output is not None:
            return Path(os.path.expanduser(self.output))
        local = os.path.expanduser(self.model)
        stem = os.path.basename(os.path.realpath(local)) if os.path.exists(local) else self.model.split("/")[-1]
        amount = "custom" if self.ratio is None else f"{self.ratio:g}"
        return Path(f"{stem}-folded-{amount}")

    def work(self) -> dict[str, Any]:
        """The options that decide the bytes of the output; two runs that agree on them can resume one another."""
        values = dataclasses.asdict(self)
        for name in ("output", "overwrite", "verify", *AFTERWARDS):
            del values[name]
        values["align"] = self.alignment
        values["layers"] = {str(i): values["layers"][i] for i in sorted(self.layers)}
        return values


def sweep_configs(config: FoldConfig, ratios: Sequence[float]) -> list[FoldConfig]:
    """One config per ratio; an output that was named becomes the folder that holds them, under their default names.

    Raises:
        UsageError: a ratio that stands twice, or is none.
    """
    if len(set(ratios)) < len(ratios):
        raise UsageError(f"--ratio names {max(ratios, key=list(ratios).count):g} twice")
    configs = []
    for ratio in ratios:
        named = dataclasses.replace(config, ratio=ratio, output=None)
        parent = Path() if config.output is None else config.output_path
        configs.append(dataclasses.replace(named, output=str(parent / named.output_path.name)))
    return configs


def option(name: str) -> str:
    """Spelling of a field on the command line."""
    return "--" + name.replace("_", "-")


def check_compute_dtype(value: Any) -> None:
    """Raise UsageError unless ``value`` is one of ``DTYPES``."""
    if value not in DTYPES:
        raise UsageError(f"--compute-dtype is {value!r}; choose from {', '.join(DTYPES)}")


def check_fraction(value: Any, name: str) -> None:
    """Raise UsageError unless ``value`` is None or a number in [0, 1)."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(f"{name} is {value!r}; it is the fraction to remove and must lie in [0, 1)")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
