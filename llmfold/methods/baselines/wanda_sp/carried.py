"""Hidden states of the pruned model that a baseline carries from layer to layer, found again after an interruption."""

import numpy as np

from llmfold.methods.dense import Measurement
from llmfold.runtime.storage import fsync_path


class CarriedStates:
    """States before the layer at hand; those after it take their place once the layer is journalled."""

    def __init__(self, on: Measurement) -> None:
        """Set up; nothing is written or opened yet."""
        self._on = on
        self._index = 0
        self._now: np.memmap | None = None
        self._next: np.memmap | None = None

    @property
    def now(self) -> np.memmap:
        """The states before the layer at hand, (sequences, tokens, hidden)."""
        assert self._now is not None
        return self._now

    def start(self, first_layer: int) -> None:
        """Write the first states, or open those that an interrupted run left."""
        self._index = first_layer
        name = _name(first_layer)
        self._now = self._on.states(name, create=False) if first_layer else self._on.first_states(name)

    def advance(self) -> np.memmap:
        """Fresh states after the layer at hand."""
        self._next = self._on.states(_name(self._index + 1), create=True)
        return self._next

    def flush(self) -> None:
        """Put the states after the layer on disk."""
        assert self._next is not None
        self._next.flush()
        fsync_path(self._on.path(_name(self._index + 1)).parent)

    def committed(self) -> None:
        """Forget the states before the layer."""
        self._on.path(_name(self._index)).unlink()
        self._now, self._index = self._next, self._index + 1


def _name(index: int) -> str:
    return f"pruned-{index:05d}"
