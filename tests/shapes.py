"""Shapes of tiny models of the registered families with their stock models."""

from typing import Any

from llmfold.models import shape_of, stock_config
from llmfold.models.read_shape import registered_shape
from llmfold.models.stock_shape import StockShape


def shape_with_stock(raw: dict[str, Any]) -> StockShape:
    """Of a raw config."""
    return registered_shape(stock_config(raw), shape_of(raw))
