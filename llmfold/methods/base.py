"""What the engine asks of a method while it folds, and what it gives it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.config import FoldConfig
from llmfold.folding.layer import LayerRecord
from llmfold.methods.method import Notify
from llmfold.models import LayerShape, Role
from llmfold.models.pieces import Piece
from llmfold.planning import FoldPlan, Sensitivities
from llmfold.planning.cost import Cost, Stage
from llmfold.runtime.hidden_states import STATE_FOLDER
from llmfold.runtime.reduction import OrderedReduce

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models

Weights = Mapping[Role, Tensor]
ReadLayer = Callable[[int], dict[Role, Tensor]]
Folded = tuple[dict[Role, Tensor], LayerRecord]
"""Tensors of a folded layer, and what the report says of it."""


def read_layer(
    checkpoint: Checkpoint,
    shape: "StockShape",
    index: int,
    *,
    check_finite: bool = True,
    device: torch.device | None = None,
) -> dict[Role, Tensor]:
    """Stored tensors of a decoder layer by role.

    Args:
        checkpoint: has them.
        shape: its shape.
        index: of the layer.
        check_finite: whether to look for NaN and infinity.
        device: where they will be used; on the host, experts are read one by one when they are needed, and again when
            they are needed again. None: all are read now.

    Raises:
        CheckpointError: one cannot be read, or is not finite and ``check_finite`` says to look.
    """
    if device is None or device.type != "cpu":
        return shape.unpack(index, partial(checkpoint.read, check_finite=check_finite))
    seen: set[tuple[str, range | None]] = set()

    def read(name: str, part: range | None = None) -> Tensor:
        tensor = checkpoint.read(name, part, check_finite=check_finite and (name, part) not in seen)
        seen.add((name, part))
        return tensor

    return shape.unpack_deferred(index, read)


@dataclass(frozen=True)
class Output:
    """A folded checkpoint in the making.

    Attributes:
        work: its folder.
        layers: their widths.
        read_layer: gives the stored tensors of a layer that is written, by role.
    """

    work: Path
    layers: Sequence[LayerShape]
    read_layer: ReadLayer


@dataclass(frozen=True)
class FoldContext:
    """Where a method works: the source, the work folder, the device, and the processes that share the work."""

    config: FoldConfig
    checkpoint: Checkpoint
    shape: "StockShape"
    work: Path
    device: torch.device
    team: OrderedReduce = field(default_factory=OrderedReduce)

    @property
    def states(self) -> Path:
        """Folder for hidden states and what is measured on them; it goes when all layers are folded."""
        return self.work / STATE_FOLDER

    def read_layer(self, index: int) -> dict[Role, Tensor]:
        """See :func:`read_layer`; to be used on the context's device."""
        return read_layer(self.checkpoint, self.shape, index, device=self.device)

    def read_piece(self, piece: Piece) -> dict[Role, Tensor]:
        """Stored tensors of a piece of a layer by role; raises as :func:`read_layer`."""
        return self.shape.unpack_piece(piece, self.checkpoint.read)


class LayerMethod:
    """Folds layers; whatever it carries from one to the next survives an interrupted run.

    As it stands it measures nothing beforehand, carries nothing between layers, and changes none.

    Attributes:
        reads_back: whether it reads layers of its outputs, which are then written before the next is folded.
    """

    reads_back = False

    def ready(self, read_layer: ReadLayer, notify: Notify) -> None:
        """Find out what concerns all layers at once; all processes that share the work call it alike."""

    def measure(self, read_layer: ReadLayer, ratio: float, notify: Notify) -> Sensitivities | None:
        """What every layer would lose by every width, or None where the method cannot tell."""
        return None

    def start(self, first_layer: int, outputs: Sequence[Output]) -> None:
        """Get ready to fold into some outputs from ``first_layer`` on (not 0 where an earlier run was interrupted)."""

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Layers (ascending) in the groups that they are prepared in; by default one."""
        return iter([layers] if layers else [])

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """Have what the layers of a group are measured on at hand; all processes that share the work call it alike."""

    def fold(self, index: int, weights: Weights, before: LayerShape, after: LayerShape) -> Folded:
        """Fold one layer: stored tensors in, folded tensors out, on whatever device they ended up."""
        return dict(weights), LayerRecord()

    def fold_into(
        self, piece: Piece, weights: Weights, before: LayerShape, outputs: Sequence[Output]
    ) -> Iterator[Folded]:
        """:meth:`fold` for several outputs, one after another; of a layer, or of a piece of it where a method can."""
        return (self.fold(piece.layer, weights, before, output.layers[piece.layer]) for output in outputs)

    def sync_state(self) -> None:
        """Put what the next layer needs on disk, before the layer just folded is journalled as done."""

    def on_committed(self) -> None:
        """The layer just folded is safe; drop what only it needed."""

    def data_facts(self) -> dict[str, Any]:
        """What the method looked at beside the weights, for the report: kind of data, tokens, warnings."""
        return {"data": "none"}


def rewriting_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of reading and writing each weight once."""
    return Cost.of([Stage("fold", memory=2.0 * plan.bytes_before)])
