"""Plain data as any reader of JSON takes it."""

import math
from typing import Any


def finite(content: Any) -> Any:
    """The same plain data with None for every number that is NaN or infinite, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
