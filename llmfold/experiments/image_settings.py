"""What to compare of an image model, and how: options of ``llmfold compare`` in one frozen dataclass."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from llmfold.errors import UsageError
from llmfold.evaluation.image_options import IMAGES, IMAGES_HELP, ImageMeasuring
from llmfold.experiments.settings import AGAIN, MUCH, WHAT, Amount, Folds
from llmfold.experiments.variants import Variant, parse_variants
from llmfold.images.config import METHODS, ImageConfig, runs_inputs
from llmfold.kinds import ANYTHING, SWITCH, TEXT, choice, integer
from llmfold.options import check_options, numbers, option


@dataclass(frozen=True)
class ImageVariant(Variant):
    """A method of image models with options of its own, such as ``paper:repair=statistics``."""

    config: ClassVar[Any] = ImageConfig

    @classmethod
    def methods(cls) -> Sequence[str]:
        """Names of the methods that there are."""
        return tuple(METHODS)

    @property
    def random(self) -> bool:
        """Whether another seed may give another result."""
        return runs_inputs(self.method, self.options.get("repair")) or self.options.get("cluster") == "kmeans"


@dataclass(frozen=True)
class ImageSettings(ImageMeasuring, Folds):
    """Options of a comparison of image models."""

    model: str = option("local folder or hub id of an image model", TEXT, WHAT)
    methods: str = option("names with commas between; one may carry options", TEXT, WHAT)
    images: str = option(IMAGES_HELP, TEXT, IMAGES)
    output: Path = option("folder to write", ANYTHING, WHAT, parse=Path)  # noqa: RUF009 - it is a field
    ratio: tuple[float, ...] = option("fraction of parameters, e.g. 0.2 or 0.1,0.2,0.3", ANYTHING, MUCH, parse=numbers)
    ratio_of: str = option("what fractions count", choice("parameters", "channels"), MUCH, "parameters")
    revision: str | None = option("branch, tag or commit on the hub", TEXT, WHAT, None)
    seeds: int = option("fold with the seeds 0 to N - 1 where anything is random", integer(1), WHAT, 3)
    limit: int | None = option("N images only: of a folder spread evenly, else the first", integer(1), IMAGES, None)
    keep: bool = option("leave the folded models in OUTPUT-models", SWITCH, AGAIN, False)
    recompute: bool = option("do not use results that the output already holds", SWITCH, AGAIN, False)
    variants: tuple[ImageVariant, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model; raises UsageError."""
        object.__setattr__(self, "variants", parse_variants(self.methods, ImageVariant))
        if not self.ratio or len(set(self.ratio)) < len(self.ratio):
            raise UsageError("--ratio is empty, or names a fraction twice: give each once")
        check_options(self)
        self.check()

    def fold_config(self, variant: Variant, amount: Amount, seed: int, output: Path) -> ImageConfig:
        """The options of one fold; raises UsageError where they do not go together."""
        options: dict[str, Any] = {"ratio_of": self.ratio_of, "revision": self.revision, **amount}
        if runs_inputs(variant.method, variant.options.get("repair")):
            options["device"] = self.device
        options |= {"method": variant.method, **variant.options}
        return ImageConfig(self.model, **options, seed=seed, output=str(output), overwrite=True)

    def work(self, config: ImageConfig) -> dict[str, Any]:
        """The options that decide the result of a fold."""
        return {**dataclasses.asdict(config), "model": None, "output": None}
