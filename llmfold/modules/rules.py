"""What each operation of a trace does with channels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from llmfold.modules.ties import Ties


@dataclass(frozen=True)
class Layout:
    """Where a tensor of a trace has channels: the axis, and the channel at each of its positions."""

    axis: int
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A node of the trace, with what is known of its inputs.

    Attributes:
        node: of the graph.
        args: positional.
        kwargs: by name.
        layouts: of the nodes before it.
        stored: name in the state dict by placeholder.
        ties: channels of the trace.
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layouts: Mapping[fx.Node, Layout | None]
    stored: Mapping[str, str]
    ties: Ties

    def layout(self, number: int) -> Layout | None:
        """Layout of an argument, None where it has none."""
        source = self.args[number] if number < len(self.args) else None
        return self.layouts.get(source) if isinstance(source, fx.Node) else None

    def tensor(self, number: int) -> str | None:
        """Name in the state dict of an argument, None where it is no stored tensor."""
        source = self.args[number] if number < len(self.args) else None
        return self.stored.get(source.name) if isinstance(source, fx.Node) else None

    def layer(self, number: int) -> str | None:
        """Path of the convolution or linear layer whose output an argument is, where nothing else reads that."""
        source = self.args[number]
        if known_name(source.target) not in _LAYERS or len(source.users) > 1:
            return None
        weight = self.stored.get(source.args[1].name)
        return None if weight is None else _module(weight)

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of an argument that is a tensor."""
        return tuple(self.args[number].meta["val"].shape)

    def argument(self, number: int, default: Any) -> Any:
        """A positional argument or its default."""
        return self.args[number] if number < len(self.args) else default

    @property
    def given(self) -> tuple[int, ...]:
        """Shape of what the operation gives."""
        return tuple(self.node.meta["val"].shape)


_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
Rule = Callable[[Operation], Layout | None]


def known_name(target: Any) -> str:
    """An operation's name without namespace, overload and the mark of those that work in place."""
    schema = getattr(target, "_schema", None)
    name = schema.name.rpartition("::")[2] if schema is not None else getattr(target, "__name__", str(target))
    return str(name).rstrip("_") if not str(name).startswith("_") else str(name)


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _convolution(op: Operation) -> Layout | None:
    weight, bias, groups = op.tensor(1), op.tensor(2), int(op.argument(6, 1))
    read, shape = op.layout(0), op.shape(1)
    if weight is None or (read is not None and read.axis != 1):
        return None
    if groups == 1:
        made = op.ties.make(shape[0], _module(weight))
        if read is not None:
            op.ties.place(weight, 1, read.channels, "consumer")
    elif read is None:
        return None
    elif shape[1] == 1 and groups == len(read.channels):
        made = tuple(c for c in read.channels for _ in range(shape[0] // groups))
    else:
        made = _grouped(op, weight, read, groups)
    if groups > 1 and shape[1] > 1:
        op.ties.tie(made, made[: shape[0] // groups] * groups)
    op.ties.place(weight, 0, made, "producer")
    if bias is not None:
        op.ties.place(bias, 0, made, "producer")
    return Layout(1, made)


def _grouped(op: Operation, weight: str, read: Layout, groups: int) -> tuple[int, ...]:
    """Channels of a grouped convolution: those at the same place of every group are one unit, before and after it."""
    shape = op.shape(1)
    first = read.channels[: shape[1]]
    op.ties.tie(read.channels, first * groups)
    op.ties.place(weight, 1, first, "consumer")
    return op.ties.make(shape[0], _module(weight))


def _linear(op: Operation) -> Layout | None:
    weight, bias, read = op.tensor(1), op.tensor(2), op.layout(0)
    last = len(op.shape(0)) - 1
    if weight is None or (read is not None and read.axis != last):
        return None
    if read is not None:
        op.ties.place(weight, 1, read.channels, "consumer")
    made = op.ties.make(op.shape(1)[0], _module(weight))
    op.ties.place(weight, 0, made, "producer")
    if bias is not None:
        op.ties.place(bias, 0, made, "producer")
    return Layout(last, made)


def _batch_norm(op: Operation) -> Layout | None:
    read = op.layout(0)
    if read is None or read.axis != 1:
        return None
    for number in (1, 2, 3, 4):
        name = op.tensor(number)
        if name is not None:
            op.ties.place(name, 0, read.channels, "norm")
    norm, layer = op.tensor(3), op.layer(0)
    if norm is not None and layer is not None:
        op.ties.norms[_module(norm)] = layer
    return read


def _padded(op: Operation) -> Layout | None:
    """Zeros around pixels; around channels they would be channels of their own."""
    read, sizes = op.layout(0), op.args[1]
    if read is None:
        return None
    behind = len(op.shape(0)) - 1 - read.axis
    return None if any(sizes[2 * behind : 2 * behind + 2]) else read


def _same(op: Operation) -> Layout | None:
    return op.layout(0)


def _pooled(op: Operation) -> Layout | None:
    read = op.layout(0)
    return read if read is not None and read.axis == 1 and len(op.given) > 2 else None


def _together(op: Operation) -> Layout | None:
    """Elementwise on two inputs: equal places become one unit."""
    layouts = [layout for layout in (op.layout(0), op.layout(1)) if layout is not None]
    ranks = [len(op.shape(n)) for n in (0, 1) if isinstance(op.args[n], fx.Node)]
    if not layouts:
        return None
    if len(layouts) == 1:
        return layouts[0] if _harmless(op, layouts[0]) else None
    behind = [layout.axis - rank for layout, rank in zip(layouts, ranks, strict=True)]
    if behind[0] != behind[1] or len(layouts[0].channels) != len(layouts[1].channels):
        return None
    op.ties.tie(layouts[0].channels, layouts[1].channels)
    return Layout(len(op.given) + behind[0], layouts[0].channels)


def _harmless(op: Operation, layout: Layout) -> bool:
    """Whether the other input is a number, or alike for all channels."""
    number = 1 if op.layout(0) is not None else 0
    other = op.args[number] if number < len(op.args) else None
    if not isinstance(other, fx.Node):
        return True
    rank, size = len(op.shape(1 - number)), op.shape(number)
    place = layout.axis - rank + len(size)
    return rank >= len(size) and (place < 0 or size[place] == 1)


def _reshaped(op: Operation) -> Layout | None:
    read = op.layout(0)
    if read is None:
        return None
    before, after, axis = op.shape(0), op.given, read.axis
    if len(after) <= axis or before[:axis] != after[:axis]:
        return None
    if after[axis] == before[axis]:
        return read
    for stop in range(axis + 1, len(before) + 1):
        size = math.prod(before[axis:stop])
        if size == after[axis]:
            each = size // before[axis]
            return Layout(axis, tuple(c for c in read.channels for _ in range(each)))
    return _split(op, read)


def _split(op: Operation, read: Layout) -> Layout | None:
    """An axis taken apart in two: what lies along the second is one unit, as the neurons of a head are."""
    before, after, axis = op.shape(0), op.given, read.axis
    if after[axis] == 1 or (*before[: axis + 1], *before[axis + 1 :]) != (
        *after[:axis],
        math.prod(after[axis : axis + 2]),
        *after[axis + 2 :],
    ):
        return None
    each = after[axis + 1]
    first = read.channels[::each]
    op.ties.tie(read.channels, tuple(channel for channel in first for _ in range(each)))
    return Layout(axis, first)


def _attention(op: Operation) -> Layout | None:
    """Queries, keys and values of (batch, heads, positions, width): each head is a unit, alone with its own."""
    layouts, mask = [op.layout(number) for number in range(3)], op.argument(3, None)
    heads = [layout.channels for layout in layouts if layout is not None and layout.axis == len(op.given) - 3]
    by_head = isinstance(mask, fx.Node) and len(op.shape(3)) > 2 and op.shape(3)[-3] != 1
    if len({len(channels) for channels in heads}) != 1 or len(heads) < 3 or by_head:
        return None
    for channels in heads[1:]:
        op.ties.tie(heads[0], channels)
    op.ties.heads.update(heads[0])
    return layouts[0]


def _permuted(op: Operation) -> Layout | None:
    read = op.layout(0)
    if read is None:
        return None
    rank = len(op.shape(0))
    return Layout([axis % rank for axis in op.args[1]].index(read.axis), read.channels)


def _transposed(op: Operation) -> Layout | None:
    read = op.layout(0)
    if read is None:
        return None
    rank = len(op.shape(0))
    one, other = op.args[1] % rank, op.args[2] % rank
    swapped = {one: other, other: one}
    return Layout(swapped.get(read.axis, read.axis), read.channels)


def _reduced(op: Operation) -> Layout | None:
    """Mean or sum over some axes."""
    read, rank = op.layout(0), len(op.shape(0))
    axes = op.argument(1, None)
    if read is None or not axes:
        return None
    gone = {axis % rank for axis in axes}
    if read.axis in gone:
        return None
    lower = 0 if op.argument(2, False) else sum(axis < read.axis for axis in gone)
    return Layout(read.axis - lower, read.channels)


def _sliced(op: Operation) -> Layout | None:
    read, axis = op.layout(0), int(op.argument(1, 0)) % len(op.shape(0))
    if read is None or axis != read.axis:
        return read
    picked = read.channels[op.argument(2, None) : op.argument(3, None) : op.argument(4, 1)]
    return Layout(axis, picked)


def _selected(op: Operation) -> Layout | None:
    read, axis = op.layout(0), int(op.args[1]) % len(op.shape(0))
    if read is None or axis == read.axis:
        return None
    return Layout(read.axis - (axis < read.axis), read.channels)


def _joined(op: Operation) -> Layout | None:
    """Concatenation."""
    layouts = [op.layouts.get(source) for source in op.args[0]]
    known = [layout for layout in layouts if layout is not None]
    if len(known) < len(layouts) or len({layout.axis for layout in known}) > 1:
        return None
    axis = int(op.argument(1, 0)) % len(op.given)
    if axis == known[0].axis:
        return Layout(axis, sum((layout.channels for layout in known), ()))
    for layout in known[1:]:
        op.ties.tie(known[0].channels, layout.channels)
    return known[0]


_ELEMENTWISE = (
    *("relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu"),
    *("mish", "softplus", "dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "neg", "abs", "sqrt"),
    *("pow", "exp", "clamp", "square", "feature_dropout", "upsample_nearest2d", "upsample_bilinear2d"),
)
_POOLS = ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool1d")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_LAYERS[:3], _convolution),
    **dict.fromkeys(_ELEMENTWISE, _same),
    **dict.fromkeys((*_POOLS, "adaptive_max_pool2d"), _pooled),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _together),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("mean", "sum"), _reduced),
    **dict.fromkeys(("transpose", "swapaxes"), _transposed),
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "pad": _padded,
    "constant_pad_nd": _padded,
    "permute": _permuted,
    "slice": _sliced,
    "select": _selected,
    "cat": _joined,
}
"""By name of the operation; a rule gives None where channels do not come through it one by one."""
