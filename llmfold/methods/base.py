"""What the engine asks of a method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.models import LayerShape, Role
from llmfold.planning import Sensitivities

Weights = Mapping[Role, Tensor]
ReadLayer = Callable[[int], dict[Role, Tensor]]


class LayerMethod(Protocol):
    """Folds layers; whatever it carries from one to the next survives an interrupted run."""

    def ready(self, read_layer: ReadLayer, say: Callable[[str], None]) -> None:
        """Find out what concerns all layers at once; all processes that share the work call it alike."""

    def measure(self, read_layer: ReadLayer, ratio: float, say: Callable[[str], None]) -> Sensitivities | None:
        """What every layer would lose by every width, or None where the method cannot tell."""

    def start(self, first_layer: int) -> None:
        """Get ready to fold from ``first_layer`` on (not 0 where an earlier run was interrupted)."""

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Layers (ascending) in the groups that they are prepared in."""

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """Have what the layers of a group are measured on at hand; all processes that share the work call it alike."""

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """Fold one layer: stored tensors in, folded tensors out, on whatever device they ended up."""

    def fold_at(
        self, index: int, weights: Weights, before: LayerShape, afters: Sequence[LayerShape]
    ) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
        """:meth:`fold` to several widths, one result at a time."""

    def flush(self) -> None:
        """Put what the next layer needs on disk, before the layer just folded is journalled as done."""

    def committed(self) -> None:
        """The layer just folded is safe; drop what only it needed."""

    def summary(self) -> dict[str, Any]:
        """What the method did outside the layers, for the report: data used, tokens, seconds."""


class Independent:
    """Base of methods that measure nothing beforehand and carry nothing between layers; as it is it changes nothing."""

    def ready(self, read_layer: ReadLayer, say: Callable[[str], None]) -> None:
        """Nothing concerns all layers at once."""

    def measure(self, read_layer: ReadLayer, ratio: float, say: Callable[[str], None]) -> Sensitivities | None:
        """The method cannot tell."""
        return None

    def start(self, first_layer: int) -> None:
        """There is nothing to get ready."""

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """All layers are one group."""
        return iter([layers] if layers else [])

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """There is nothing to prepare."""

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """The layer as it is."""
        return dict(weights), LayerRecord()

    def fold_at(
        self, index: int, weights: Weights, before: LayerShape, afters: Sequence[LayerShape]
    ) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
        """:meth:`fold` to several widths, which share nothing."""
        return (self.fold(index, weights, before, after) for after in afters)

    def flush(self) -> None:
        """There is nothing to put on disk."""

    def committed(self) -> None:
        """There is nothing to drop."""

    def summary(self) -> dict[str, Any]:
        """No data of any kind."""
        return {"data": "none"}
