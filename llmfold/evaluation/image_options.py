"""What to measure of an image model, and how: options of ``llmfold eval`` in one frozen dataclass."""

from dataclasses import dataclass

from llmfold.errors import UsageError
from llmfold.evaluation.measuring import MEASURING, evaluation_command
from llmfold.evaluation.options import WHAT
from llmfold.kinds import SWITCH, TEXT, integer
from llmfold.options import check_options, option

IMAGES = "images"
IMAGE_HEADING = {IMAGES: "image models"}
IMAGE_BATCH = 64
IMAGES_HELP = "folder with a subfolder a class, .npz of images and labels, or hub data set"


@dataclass(frozen=True, kw_only=True)
class ImageMeasuring:
    """How to measure image models."""

    label_column: str | None = option(
        "column of the classes, where --images is a table (default: label)", TEXT, IMAGES, None
    )
    batch_size: int = option("images in one forward pass", integer(1), MEASURING, IMAGE_BATCH)
    device: str = option("torch device (default: auto, CUDA when present)", TEXT, MEASURING, "auto")


@dataclass(frozen=True)
class ImageEvaluationSettings(ImageMeasuring):
    """Options of an evaluation of an image model."""

    model: str = option("local folder or hub id of an image model", TEXT, WHAT)
    images: str | None = option(IMAGES_HELP, TEXT, IMAGES, None)
    against: str | None = option("the dense model that it was folded from", TEXT, WHAT, None)
    against_revision: str | None = option("branch, tag or commit of the dense model on the hub", TEXT, WHAT, None)
    limit: int | None = option("N images only: of a folder spread evenly, else the first", integer(1), WHAT, None)
    trust_remote_code: bool = option("run the program (model.pt2) that a fold carries", SWITCH, WHAT, False)

    def __post_init__(self) -> None:
        """Check everything that can be checked without models and data; raises UsageError."""
        if self.images is None:
            raise UsageError("image models are measured on images: pass --images, a folder with a subfolder a class")
        if self.against_revision is not None and self.against is None:
            raise UsageError("--against-revision is of --against, which is missing: pass both, or neither")
        check_options(self)

    def command(self) -> str:
        """The command line of this evaluation, files and folders by their names only."""
        return evaluation_command(self)
