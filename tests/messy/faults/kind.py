"""What a kind of fault is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from messy.draft import Draft

Apply = Callable[[Draft, Any], None]


@dataclass(frozen=True)
class Kind:
    """One kind of fault: how it is put into a draft, and the values that it may have."""

    apply: Apply
    values: tuple[Any, ...]
