"""Hidden states that a method carries from layer to layer, and finds again after an interruption."""

from llmfold.methods.measure import Measurement
from llmfold.streaming.states import HiddenStates


class CarriedStates:
    """States before the layer at hand; those after it take their place once the layer is journalled."""

    def __init__(self, on: Measurement) -> None:
        """Set up; nothing is written or opened yet."""
        self._on = on
        self._now: HiddenStates | None = None
        self._next: HiddenStates | None = None

    @property
    def now(self) -> HiddenStates:
        """The states before the layer at hand."""
        assert self._now is not None
        return self._now

    def start(self, first_layer: int) -> None:
        """Write the first states, or open those that an interrupted run left."""
        if first_layer == 0:
            self._now = self._on.first_states()
        else:
            shape = (*self._on.size, self._on.shape.hidden)
            self._now = HiddenStates(self._on.work, first_layer, shape, create=False)

    def advance(self) -> HiddenStates:
        """Fresh states after the layer at hand."""
        self._next = self._on.team.made(lambda create: self.now.next(create=create))
        return self._next

    def flush(self) -> None:
        """Put the states after the layer on disk; one process does it for all, once they have written theirs."""
        assert self._next is not None
        self._next.flush()

    def committed(self) -> None:
        """Forget the states before the layer."""
        if self._on.team.leads:
            self.now.discard()
        self._now = self._next
