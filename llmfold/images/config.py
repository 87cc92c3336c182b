"""Every option of a fold of an image model; those that other models have too go by the same names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llmfold.config import DTYPES, GROUPS, HOW, MUCH, RUN, WHAT, output_path
from llmfold.errors import UsageError
from llmfold.kinds import ANYTHING, FRACTION, SWITCH, TEXT, choice, integer
from llmfold.options import check_options, numbers, option
from llmfold.sizes import parse_size

IMAGE_GROUPS = {name: GROUPS[name] for name in (WHAT, MUCH, HOW, RUN)}
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "self": "channels chosen, and layer after layer refit, on inputs made from the model alone",
        "paper": "channels clustered by their weights, producers averaged and consumers summed",
        "ifm": "the two clusters of channels with the closest means merged, again and again",
        "inn": "channels in an order of little variation, resampled at fewer points",
        "magnitude-l1": "channels of the smallest L1 norm cut",
        "magnitude-l2": "channels of the smallest L2 norm cut",
    }
)
"""What ``--method`` may be for an image model, and what each does."""
_MERGING = ("paper", "ifm")


def runs_inputs(method: str, repair: str | None) -> bool:
    """Whether inputs are run through the model."""
    return method == "self" or repair == "statistics"


@dataclass(frozen=True)
class ImageConfig:
    """Options of a fold of an image model."""

    model: str = option("local folder or hub id of an image model", TEXT, WHAT)
    ratio: float = option(
        "fraction of parameters to remove, e.g. 0.3, or several: 0.1,0.2,0.3", FRACTION, MUCH, parse=numbers
    )
    output: str | None = option("folder to write (default: MODEL-folded-RATIO here)", TEXT, WHAT, None)
    revision: str | None = option("branch, tag or commit on the hub", TEXT, WHAT, None)
    method: str = option("what decides and repairs", choice(*METHODS), HOW, "self")
    cluster: str = option("clustering of --method paper", choice("ward", "kmeans", "hartigan"), HOW, "hartigan")
    repair: str | None = option(
        "variance: Fold-AR, for paper and ifm; statistics: BatchNorms measured anew on inverted inputs, Fold-DIR "
        "(default: variance for paper, else none)",
        choice("none", "variance", "statistics"),
        HOW,
        None,
    )
    ratio_of: str = option(
        "what --ratio counts: all parameters, or the channels of every coupling",
        choice("parameters", "channels"),
        MUCH,
        "parameters",
    )
    attention_ratio: float = option(
        "fraction of attention heads to remove, where the stock class takes fewer of the same width, as ViT does",
        FRACTION,
        MUCH,
        0.0,
    )
    seed: int = option("seed of everything random", integer(0, 2**63, shown="2^63"), HOW, 0)
    device: str = option("torch device where inputs are inverted (default: auto, CUDA when present)", TEXT, HOW, "auto")
    dtype: str = option("dtype written (default: auto, as stored)", choice(*DTYPES), HOW, "auto")
    max_shard_size: int | str = option("largest file of weights", ANYTHING, RUN, "5GB")
    overwrite: bool = option("replace an earlier llmfold output", SWITCH, WHAT, False)

    def __post_init__(self) -> None:
        """Check every value; raises UsageError naming the option."""
        check_options(self)
        if self.method == "self" and self.repair not in (None, "none"):
            raise UsageError("--method self repairs by itself: leave --repair out")
        if self.repair == "variance" and self.method not in _MERGING:
            raise UsageError(
                f"--repair variance restores what merging averaged, and {self.method} merges nothing: leave it out"
            )
        if self.cluster != "hartigan" and self.method != "paper":
            raise UsageError(f"--cluster is used by --method paper, not by {self.method}; leave it out")
        if self.device != "auto" and not self.measures:
            raise UsageError(
                "--device is used by --method self and --repair statistics, which invert inputs; leave it out"
            )
        self.shard_bytes  # noqa: B018 - refuse a malformed size now

    @property
    def measures(self) -> bool:
        """Whether inputs are run through the model."""
        return runs_inputs(self.method, self.repair)

    @property
    def shard_bytes(self) -> int:
        """Largest shard in bytes."""
        return parse_size(self.max_shard_size)

    @property
    def output_path(self) -> Path:
        """Where the folded checkpoint goes."""
        return output_path(self.model, self.ratio, self.output)
