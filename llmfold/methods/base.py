"""What the engine asks of a method."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from llmfold.architectures import LayerShape, Role
from llmfold.folding.layer import LayerRecord
from llmfold.planning import Sensitivities

Weights = Mapping[Role, Tensor]


class LayerMethod(Protocol):
    """Folds layers in order; whatever it carries from one to the next survives an interrupted run."""

    def measure(
        self, read_layer: Callable[[int], dict[Role, Tensor]], ratio: float, say: Callable[[str], None]
    ) -> Sensitivities | None:
        """What every layer would lose by every width, or None where the method cannot tell."""

    def start(self, first_layer: int, *, drifted: bool) -> None:
        """Get ready to fold from ``first_layer`` on (not 0 where an earlier run was interrupted).

        ``drifted`` says whether any layer before it was narrowed.
        """

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """Fold one layer: stored tensors in, folded tensors out, on whatever device they ended up."""

    def flush(self) -> None:
        """Put what the next layer needs on disk, before the layer just folded is journalled as done."""

    def committed(self) -> None:
        """The layer just folded is safe; drop what only it needed."""

    def outside(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """After the last layer: tensors outside the layers that change, by name, and the record for the report."""

    def summary(self) -> dict[str, Any]:
        """What the method did outside the layers, for the report: data used, tokens, seconds."""
