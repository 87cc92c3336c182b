"""What a kind of input is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from hostile_targets.world import World

Target = Callable[[World], st.SearchStrategy[Any]]
Step = Callable[[World, Any], None]


@dataclass(frozen=True)
class Kind:
    """A kind of input: its share of all, what is drawn, how it is put into the case, and what it is sent through."""

    share: float
    drawn: Target
    place: Step
    send: Step
