"""Seconds by stage."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class StageTimer:
    """Adds up seconds by stage.

    Attributes:
        seconds: by stage, in the order the stages were first entered.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        """Begin with no seconds, or go on adding to ``seconds``."""
        self.seconds = {} if seconds is None else seconds
        self._last = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def lap(self, name: str) -> None:
        """Add the time since the last call, or since this was made, to a stage."""
        now = time.perf_counter()
        self.add(name, now - self._last)
        self._last = now


def mean_seconds(spent: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds by stage, averaged over processes that work side by side, so that they add up to time that passed."""
    names = dict.fromkeys(name for seconds in spent for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in spent) / len(spent) for name in names}
