"""Commands, one module each: ``add`` describes it to the parser, ``run`` does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """What a parsed command line leads to.

    Attributes:
        run: does the work with the options that were given.
        interrupted: what is said when a person stops it.
        shared: whether several processes may run it together.
    """

    run: Callable[[dict[str, Any]], None]
    interrupted: str = "interrupted"
    shared: bool = False
