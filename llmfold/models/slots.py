"""Where a coupling's producers and consumers lie in the tensors of a layer, whatever layout a family stores them in.

A slot names a tensor and the part of it that belongs to one role: a matrix of its own, a block of a fused one, every
second row, one expert of a stack. Read through its slot, a producer is (units, inputs) and a consumer (outputs, units),
as :class:`torch.nn.Linear` holds them; all that clusters, selects and repairs sees only such matrices.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmfold.models.base import LayerShape, Role

Rows = Callable[[int, LayerShape], slice | Tensor]
"""From the size of a tensor's unit axis, and the widths of its layer, to the part of the axis that a slot holds."""


def whole(size: int, widths: LayerShape) -> slice:
    """All of the axis."""
    return slice(0, size)


@dataclass(frozen=True)
class Block:
    """One of several equal blocks that follow each other on the axis."""

    number: int
    count: int

    def __call__(self, size: int, widths: LayerShape) -> slice:
        """The block's part of the axis."""
        length = size // self.count
        return slice(self.number * length, (self.number + 1) * length)


@dataclass(frozen=True)
class Interleaved:
    """Every ``count``-th entry of the axis, from ``number`` on."""

    number: int
    count: int

    def __call__(self, size: int, widths: LayerShape) -> slice:
        """The entries."""
        return slice(self.number, size, self.count)


@dataclass(frozen=True)
class QueryKeyValue:
    """Queries, keys or values (``part`` 0, 1, 2) of a fused projection; by KV group, or all queries before all keys."""

    part: int
    head_dim: int
    by_group: bool

    def __call__(self, size: int, widths: LayerShape) -> slice | Tensor:
        """The rows of the part, ordered by head."""
        groups, queries = widths.kv_heads, widths.group_size
        if not self.by_group:
            sizes = [widths.heads * self.head_dim, groups * self.head_dim, groups * self.head_dim]
            start = sum(sizes[: self.part])
            return slice(start, start + sizes[self.part])
        rows = torch.arange(groups * (queries + 2) * self.head_dim).view(groups, queries + 2, self.head_dim)
        chosen = rows[:, :queries] if self.part == 0 else rows[:, queries + self.part - 1]
        return chosen.flatten()


@dataclass(frozen=True)
class Slot:
    """A role's part of a tensor.

    Attributes:
        tensor: name in the layer.
        axis: of the tensor (of one expert, where it is a stack of such) that counts units.
        matrix: whether it has an axis of units and another one.
        consumer: whether units are the inputs of the matrix.
        expert: number in a stack, or None.
        rows: which part of the axis.
    """

    tensor: Role
    axis: int = 0
    matrix: bool = True
    consumer: bool = False
    expert: int | None = None
    rows: Rows = whole

    def read(self, tensor: Tensor, widths: LayerShape) -> Tensor:
        """The role's matrix (units, inputs) or (outputs, units), or vector (units,); a view where that can be."""
        if self.is_whole:
            return tensor
        part = self._of_expert(tensor)
        part = _take(part, self.axis, self.rows(part.shape[self.axis], widths))
        return part.T if self._transposed else part

    def write(self, tensor: Tensor, values: Tensor, widths: LayerShape) -> None:
        """Put a role's values into a tensor that is as wide as ``widths``."""
        part = self._of_expert(tensor)
        rows = self.rows(part.shape[self.axis], widths)
        stored = values.T if self._transposed else values
        if isinstance(rows, slice):
            _take(part, self.axis, rows).copy_(stored)
        else:
            part.index_copy_(self.axis, rows.to(part.device), stored.to(part.dtype))

    @property
    def of_units(self) -> bool:
        """Whether the tensor has an axis of units: a consumer's bias has none."""
        return self.matrix or not self.consumer

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is the role's matrix or vector as it stands."""
        return self.expert is None and self.rows is whole and not self._transposed

    @property
    def _transposed(self) -> bool:
        return self.matrix and (self.axis == 0) == self.consumer

    def _of_expert(self, tensor: Tensor) -> Tensor:
        return tensor if self.expert is None else tensor[self.expert]

    def unit_axis(self) -> int:
        """The axis of units, counted in the whole tensor."""
        return self.axis + (0 if self.expert is None else 1)


def _take(tensor: Tensor, axis: int, rows: slice | Tensor) -> Tensor:
    if isinstance(rows, slice):
        return tensor[(slice(None),) * axis + (rows,)]
    return tensor.index_select(axis, rows.to(tensor.device))


def _room(stored: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor to fill slot by slot: what was stored where the size stays, else what no check would let pass."""
    if stored.shape == shape:
        return stored.to(value.device, value.dtype, copy=True)
    return value.new_full(shape, torch.nan)


Slots = Mapping[Role, Slot]


def narrowed(
    stored: Mapping[Role, Tensor],
    parts: Iterable[tuple[Slots, Mapping[Role, Tensor]]],
    shapes: Mapping[Role, tuple[int, ...]],
    widths: LayerShape,
) -> dict[Role, Tensor]:
    """The tensors of a layer with what was folded in their places.

    Args:
        stored: the layer's tensors as they were.
        parts: slots of each coupling, with its folded values by role; a tensor that any of them touches is given anew.
        shapes: of the narrower layer's tensors.
        widths: of the narrower layer.

    Returns:
        All tensors of the narrower layer.
    """
    result = dict(stored)
    for slots, values in parts:
        for role, value in values.items():
            slot = slots[role]
            if slot.is_whole:
                result[slot.tensor] = value
                continue
            if result[slot.tensor] is stored[slot.tensor]:
                result[slot.tensor] = _room(stored[slot.tensor], value, shapes[slot.tensor])
            slot.write(result[slot.tensor], value, widths)
    return result
