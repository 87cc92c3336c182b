"""Shapes of tiny models of the registered families with their stock models."""

from typing import Any

from llmfold.checkpoint import Checkpoint
from llmfold.models import shape_of, stock_config
from llmfold.models.read_shape import registered_shape
from llmfold.models.stock_shape import StockShape
from llmfold.models.tying import stored_shape, with_stock


def shape_with_stock(raw: dict[str, Any]) -> StockShape:
    """Of a raw config."""
    return registered_shape(stock_config(raw), shape_of(raw))


def opened(checkpoint: Checkpoint) -> StockShape:
    """Of a checkpoint."""
    return with_stock(checkpoint, stored_shape(checkpoint))
