"""Tensors that are made when an operation needs their numbers, and are not kept.

The experts of a layer can take most of its memory, though a forward pass needs one after the other. A stack of them can
stand in its layer without having been read: what picks an expert reads that one, and autograd, which keeps what it will
need to go back, keeps how to read it again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from llmfold.models.base import Role

_aten = torch.ops.aten
_OF_EACH = {_aten.detach.default, _aten.alias.default, _aten._to_copy.default}
"""Operations on one tensor that need not be done before their result is used, and can be done to each expert apart."""
_PUT_OFF = {
    *_OF_EACH,
    *(_aten.t.default, _aten.transpose.int, _aten.permute.default, _aten.slice.Tensor, _aten.select.int),
}
"""All that need not be done before their result is used."""


@dataclass(frozen=True)
class Source:
    """Where the numbers come from.

    Attributes:
        whole: makes all of them.
        part: makes an entry of the first axis, where those can be made apart.
    """

    whole: Callable[[], Tensor]
    part: Callable[[int], Tensor] | None = None

    def after(self, function: Any, *args: Any, **named: Any) -> "Source":
        """What an operation makes of them."""
        if function is _aten.select.int and args[0] == 0 and args[1] >= 0 and self.part is not None:
            return Source(partial(self.part, args[1]))
        each = self.part if function in _OF_EACH else None
        return Source(
            lambda: function(self.whole(), *args, **named),
            None if each is None else lambda number: function(each(number), *args, **named),
        )


class Deferred(Tensor):
    """A tensor of known shape, dtype and device whose numbers are made anew by every operation that needs them.

    It cannot be written to: what would do that raises TypeError.
    """

    source: Source

    @staticmethod
    def __new__(cls, like: Tensor, source: Source, device: torch.device) -> "Deferred":
        """Stand for a tensor of the shape and dtype of ``like`` on ``device``."""
        made: Deferred = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=device)
        made.source = source
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """Its shape, not its numbers."""
        return f"Deferred({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Put off what can be, make the numbers for all else."""
        named, first = kwargs or {}, args[0] if args else None
        if function in _PUT_OFF and isinstance(first, Deferred):
            meta = {name: value for name, value in named.items() if name not in ("device", "pin_memory")}
            like = function(torch.empty(first.shape, dtype=first.dtype, device="meta"), *args[1:], **meta)
            return Deferred(like, first.source.after(function, *args[1:], **named), named.get("device") or first.device)
        if function._schema.is_mutable and isinstance(first, Deferred):
            raise TypeError(f"{function} writes to a tensor that is read when it is needed")
        return function(*tree_map_only(Deferred, _whole, args), **tree_map_only(Deferred, _whole, named))


class Experts:
    """Experts that are read one at a time; the last one read is kept, since its matrices are needed one by one."""

    def __init__(self, read: Callable[[int], dict[Role, Tensor]]) -> None:
        """Take what reads an expert's tensors by role."""
        self._read = read
        self._last: tuple[int, dict[Role, Tensor]] = (0, read(0))

    def stacks(self, shapes: Mapping[Role, tuple[int, ...]]) -> dict[Role, Tensor]:
        """Stacks of all experts by role, none of which is in memory.

        Args:
            shapes: of the stacks.
        """
        return {role: self._stack(role, size) for role, size in shapes.items()}

    def _stack(self, role: Role, size: tuple[int, ...]) -> Deferred:
        first = self._last[1][role]
        part = partial(self._of, role)
        whole = partial(_stacked, part, size[0])
        return Deferred(torch.empty(size, dtype=first.dtype, device="meta"), Source(whole, part), first.device)

    def _of(self, role: Role, number: int) -> Tensor:
        if self._last[0] != number:
            self._last = (number, self._read(number))
        return self._last[1][role]


def _stacked(part: Callable[[int], Tensor], count: int) -> Tensor:
    return torch.stack([part(number) for number in range(count)])


def _whole(tensor: Deferred) -> Tensor:
    return tensor.source.whole()


def at_hand(tensor: Tensor) -> Tensor:
    """A tensor whose numbers are in memory, and nothing beside them."""
    if not isinstance(tensor, Deferred):
        return tensor
    made = tensor.source.whole()
    return made if made._base is None else made.clone()
