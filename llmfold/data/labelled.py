"""Images to measure on, with their classes: a folder, an .npz file, or a data set of the hub."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmfold.errors import UsageError

Image = NDArray[np.uint8]
"""(height, width, channels)"""
_LABEL = "label"
"""Column of the classes, unless the user names another."""
_EXTRA = "need the images extra: pip install 'llmfold[images]'"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MEASURED = ("test", "validation", "valid", "val")
"""Splits to measure on, the first that is there."""
_ARRAYS = (("images", "labels"), ("x", "y"))
Rows = tuple[Callable[[], Iterator[tuple[Image, Any]]], tuple[str, ...] | None]
"""What iterates over images with their labels (None where there are none), and names of classes by number."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images that can be read again and again, none of them held.

    Attributes:
        name: under which they may be published.
        count: how many.
        sha256: of all pixels and labels.
        labels: (count,) numbers of classes, None where there are none.
        names: of classes by number; None where the labels are numbers by themselves.
        read: iterates over the images.
    """

    name: str
    count: int
    sha256: str
    labels: NDArray[np.int64] | None
    names: tuple[str, ...] | None
    read: Callable[[], Iterator[Image]]


def read_images(name: str, channels: int = 3, *, limit: int | None = None, column: str | None = None) -> LabelledImages:
    """Go through images once: count, digest and labels.

    Args:
        name: a folder with one subfolder a class, or with metadata.csv, as ``datasets`` reads it; an .npz file with
            ``images`` (n, height, width, channels) uint8 and ``labels`` (n,), or ``x`` and ``y``; else a data set of
            the hub, ``name`` or ``name:config``.
        channels: that the model takes.
        limit: of images: of a folder, which is sorted by class, so many spread evenly; else the first ones.
        column: of the classes, in a table; by default ``label`` where there is one.

    Raises:
        UsageError: there are none, or they cannot be read.
    """
    path = Path(os.path.expanduser(name))
    known = f"--images {name}"
    make = _from_arrays if path.is_file() else _from_datasets
    digest, labels = hashlib.sha256(), []
    try:
        rows, names = make(path if path.exists() else name, channels, column, limit, known)
        for image, label in rows():
            digest.update(repr((image.shape, label)).encode())
            digest.update(image.tobytes())
            labels.append(label)
    except UsageError:
        raise
    except Exception as error:  # readers of formats and transports raise whatever they do
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{known} cannot be read as images: {reason}") from error
    if not labels:
        raise UsageError(f"{known} holds no images")
    numbers, names = _numbers(labels, names, known)
    public = path.resolve().name if path.exists() else name
    return LabelledImages(
        public, len(labels), digest.hexdigest(), numbers, names, lambda: (image for image, _ in rows())
    )


def _from_arrays(path: Any, channels: int, column: str | None, limit: int | None, known: str) -> Rows:
    if path.suffix != ".npz":
        raise UsageError(f"{known} is a file, and no .npz: pass a folder of images, an .npz or a data set of the hub")
    with np.load(path, allow_pickle=False) as file:
        pair = next((pair for pair in _ARRAYS if pair[0] in file), None)
        if pair is None:
            raise UsageError(f"{known} has no array called images: save images (n, height, width, channels) and labels")
        images, labels = file[pair[0]], file.get(pair[1])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
        raise UsageError(
            f"{known} holds images of shape {images.shape} and dtype {images.dtype}: (n, height, width, {channels}) "
            "uint8 is wanted"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise UsageError(f"{known} holds labels of shape {labels.shape} and dtype {labels.dtype}: one integer an image")
    listed = [None] * len(images) if labels is None else labels.tolist()
    return lambda: zip(images[:limit], listed[:limit], strict=True), None


def _from_datasets(place: Any, channels: int, column: str | None, limit: int | None, known: str) -> Rows:
    try:
        import datasets
        import PIL.Image  # noqa: F401 - datasets opens images by it
    except ImportError as error:
        raise UsageError(f"{known} is no .npz, and other images {_EXTRA}") from error
    if isinstance(place, Path):
        found = datasets.load_dataset("imagefolder", data_dir=str(place.resolve()), streaming=True)
    else:
        repository, _, subset = place.partition(":")
        found = datasets.load_dataset(repository, subset or None, streaming=True)
    split = next((found[each] for each in _MEASURED if each in found), None)
    if split is None and len(found) > 1:
        raise UsageError(f"{known} has no split called test or validation, but {', '.join(found)}")
    split = split if split is not None else next(iter(found.values()))
    features = split.features or {}
    pictures = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not pictures:
        raise UsageError(f"{known} has no column of images")
    if column is not None and column not in features:
        raise UsageError(f"{known} has no column {column!r} but {', '.join(features)}: name another by --label-column")
    mode, picture, classes = _MODES.get(channels), pictures[0], column or _LABEL
    if mode is None:
        raise UsageError(f"{known} holds pictures, and the model takes {channels} channels: pass an .npz")

    stored, decoder = split.cast_column(picture, datasets.Image(decode=False)), datasets.Image()
    wanted = None if limit is None else set(range(limit))
    if limit is not None and isinstance(place, Path):
        count = sum(1 for _ in stored)
        wanted = {number * count // limit for number in range(limit)}

    def rows() -> Iterator[tuple[Image, Any]]:
        last = None if wanted is None else max(wanted) + 1
        for number, row in enumerate(islice(stored, last)):
            if wanted is not None and number not in wanted:
                continue
            pixels = np.asarray(decoder.decode_example(row[picture]).convert(mode))
            yield pixels.reshape(*pixels.shape[:2], channels), row.get(classes)

    names = getattr(features.get(classes), "names", None)
    return rows, tuple(names) if names else None


def _numbers(
    labels: list[Any], names: tuple[str, ...] | None, known: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels as numbers, those that are words by their sorted order, with names of classes where they have any."""
    if all(label is None for label in labels):
        return None, None
    if _all_of(labels, str):
        names = tuple(sorted(set(labels)))
        return np.array([names.index(label) for label in labels], np.int64), names
    if not _all_of(labels, int) or min(labels) < 0:
        raise UsageError(f"{known} has images without a class: give each the name or the number of one, or give none")
    return np.array(labels, np.int64), names


def _all_of(labels: Iterable[Any], kind: type) -> bool:
    return all(isinstance(label, kind) for label in labels)
