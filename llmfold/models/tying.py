"""Whether a checkpoint's head is its embedding: what config.json says of it is believed where the tensors agree."""

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError
from llmfold.models.base import EMBEDDING, HEAD, ModelShape
from llmfold.models.registry import shape_of, stock_config

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape

_ROWS = 8192
"""Rows of the two that are compared at once."""


def stored_shape(checkpoint: Checkpoint) -> ModelShape:
    """The shape of a checkpoint by its config and its tensors; all that asks whether a head is tied asks this.

    Where config.json ties the embeddings, and both are stored with values that differ in any entry, transformers 5
    computes with both, so the head counts as untied. Values are read for such a checkpoint only.

    Raises:
        CheckpointError: as :func:`shape_of`; or a head differs and the transformers installed is older than 5, which
            takes the embedding for it.
    """
    shape = shape_of(checkpoint.config)
    ends = [EMBEDDING, HEAD]
    if not shape.architecture.registered:
        from llmfold.models.stock_shape import StockShape  # builds on transformers' models

        assert isinstance(shape, StockShape)
        shape = shape.of_stored(checkpoint.shapes)
        ends = shape.end_names()
    if not shape.tied or _same_values(checkpoint, ends):
        return shape
    if int(version("transformers").split(".")[0]) < 5:
        raise CheckpointError(
            f"config.json ties the embeddings, but {HEAD} differs from {EMBEDDING}, which transformers 4 and 5 read "
            "differently: set tie_word_embeddings to false if the head is meant, or remove it from the weights"
        )
    return dataclasses.replace(shape, tied=False)


def running_shape(checkpoint: Checkpoint) -> "StockShape":
    """The shape of a checkpoint with its stock model; errors as of :func:`stored_shape` and :func:`with_stock`."""
    return with_stock(checkpoint, stored_shape(checkpoint))


def with_stock(checkpoint: Checkpoint, shape: ModelShape) -> "StockShape":
    """The shape of a checkpoint, see :func:`stored_shape`, with its stock model.

    Raises:
        CheckpointError: see :func:`llmfold.models.read_shape.registered_shape`.
    """
    from llmfold.models.read_shape import registered_shape  # builds on transformers' models
    from llmfold.models.stock_shape import StockShape

    if isinstance(shape, StockShape):
        return shape
    return registered_shape(stock_config(checkpoint.config), shape).of_stored(checkpoint.shapes)


def _same_values(checkpoint: Checkpoint, ends: list[str]) -> bool:
    """Whether the head that is stored beside the embedding, if one is, equals it in every entry."""
    stored = checkpoint.tensors
    if len(ends) < 2 or not stored.keys() >= set(ends):
        return True
    if stored[ends[0]].shape != stored[ends[1]].shape:
        return False
    both = (torch.split(checkpoint.read(name, check_finite=False), _ROWS) for name in ends)
    return all(torch.equal(a.float(), b.float()) for a, b in zip(*both, strict=True))
