"""Results of an evaluation of image models: numbers of one model, and of the dense one beside it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llmfold.environment import machine_words, versions
from llmfold.errors import UsageError

_NORMAL = 1.959964
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Share:
    """A mean over images, and the half width of its 95 % interval by the normal distribution."""

    value: float
    margin: float

    @classmethod
    def of(cls, values: Tensor) -> "Share":
        """Of (n,) numbers."""
        spread = float(values.double().std(correction=0)) / math.sqrt(len(values))
        return cls(float(values.double().mean()), _NORMAL * spread)


@dataclass(frozen=True)
class ImageScores:
    """Numbers of one model; None where images have no classes, or the model has five at most.

    Attributes:
        parameters: of the model.
        multiplications: for one image.
        top1: share of images whose class has the highest score.
        top5: share of images whose class is among the five highest.
    """

    parameters: int
    multiplications: int
    top1: Share | None = None
    top5: Share | None = None


@dataclass(frozen=True)
class Closeness:
    """How close a model is to the dense one on the same images.

    Attributes:
        difference: of top-1 accuracy, image by image, so that its interval is of the pairs.
        agreement: share of images where both find the same class most likely; None for models without classes.
        kl: KL(dense || model) in nats per image; likewise.
        cosine: mean cosine of embeddings; None for classifiers.
    """

    difference: Share | None = None
    agreement: float | None = None
    kl: float | None = None
    cosine: float | None = None


@dataclass
class ImageEvaluation:
    """What was measured: of the model ``name`` and, beside it, of the one it was folded from.

    Attributes:
        protocol: how, a sentence each.
        command: that measured.
        versions: of the packages that measured.
        machine: that measured, in words.
    """

    name: str
    model: ImageScores
    dense_name: str | None = None
    dense: ImageScores | None = None
    closeness: Closeness | None = None
    protocol: list[str] = field(default_factory=list)
    command: str | None = None
    versions: dict[str, str] = field(default_factory=partial(versions, "datasets", "pillow"))
    machine: str = field(default_factory=machine_words)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON has it."""
        return asdict(self)


def scores_of(content: Mapping[str, Any]) -> ImageScores:
    """Scores that were saved as plain data."""
    return ImageScores(**{**content, "top1": _share(content["top1"]), "top5": _share(content["top5"])})


def closeness_of(content: Mapping[str, Any]) -> Closeness:
    """Likewise."""
    return Closeness(**{**content, "difference": _share(content["difference"])})


def _share(content: Mapping[str, Any] | None) -> Share | None:
    return Share(**content) if content else None


def right(vectors: Tensor, labels: Tensor, most: int = 1) -> Tensor:
    """(n,) ones where the class is among the ``most`` highest of (n, classes) scores."""
    return (vectors.topk(most).indices == labels[:, None]).any(1).double()


def closeness(dense: Tensor, model: Tensor, labels: Tensor | None, *, classes: bool) -> Closeness:
    """Compare what two models give.

    Args:
        dense: (n, width) float32 scores of classes, or embeddings.
        model: likewise.
        labels: (n,) numbers of classes, None where there are none.
        classes: whether they are scores.

    Raises:
        UsageError: they differ in width.
    """
    if dense.shape != model.shape:
        widths = f"{dense.shape[1]} numbers an image, and the model {model.shape[1]}"
        raise UsageError(f"the dense model gives {widths}: pass as --against the one that was folded")
    if not classes:
        return Closeness(cosine=float(F.cosine_similarity(dense.double(), model.double()).mean()))
    logs, others = dense.double().log_softmax(1), model.double().log_softmax(1)
    return Closeness(
        None if labels is None else Share.of(right(model, labels) - right(dense, labels)),
        float((dense.argmax(1) == model.argmax(1)).double().mean()),
        float(F.kl_div(others, logs, reduction="batchmean", log_target=True)),
    )


def scores(vectors: Tensor, labels: Tensor | None, parameters: int, multiplications: int) -> ImageScores:
    """Scores of a model by what it gives; ``labels`` are None where there are none, or the model has no classes."""
    if labels is None:
        return ImageScores(parameters, multiplications)
    top5 = Share.of(right(vectors, labels, 5)) if vectors.shape[1] > 5 else None
    return ImageScores(parameters, multiplications, Share.of(right(vectors, labels)), top5)
