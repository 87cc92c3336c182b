"""What layers of a module read and give, watched on inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class _EnoughSeen(Exception):  # noqa: N818 - no error: it ends a pass whose rest nobody reads
    """What was asked for has been seen."""


Watch = Callable[[str, Tensor, Tensor], None]
"""Told a layer's path, what it reads and what it gives."""


@contextmanager
def _watched(module: nn.Module, paths: Sequence[str], watch: Watch, stop: bool) -> Iterator[None]:
    left = set(paths)

    def hook_of(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], given: Tensor) -> None:
            watch(path, args[0], given)
            left.discard(path)
            if stop and not left:
                raise _EnoughSeen

        return hook

    hooks = [module.get_submodule(path).register_forward_hook(hook_of(path)) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def watch_layers(
    module: nn.Module, inputs: Tensor, paths: Sequence[str], watch: Watch, *, batch: int = 64, stop: bool = False
) -> None:
    """Run a module on inputs and tell what layers read and give.

    Args:
        module: in evaluation.
        inputs: (n, …).
        paths: of the layers.
        watch: told of each, batch by batch.
        batch: inputs at a time.
        stop: end each pass once all layers have been seen.
    """
    with torch.no_grad(), _watched(module, paths, watch, stop):
        for part in torch.split(inputs, batch):
            try:
                module(part)
            except _EnoughSeen:
                continue


@dataclass(frozen=True)
class Rows:
    """Which rows of a layer's input and output are looked at: every ``step``-th pixel of every image."""

    step: int

    @classmethod
    def of(cls, images: int, pixels: int, rows: int) -> "Rows":
        """About so many rows of so many images of so many pixels; the step shares no factor with common widths."""
        step = max(1, images * pixels // rows)
        return cls(step if step == 1 else step | 1)

    def inputs(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(rows, features) that a layer multiplies by its weight, as its weight's rows hold them."""
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)
            patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            return patches.transpose(1, 2).flatten(0, 1)[:: self.step]
        return x.flatten(0, -2)[:: self.step]

    def outputs(self, y: Tensor) -> Tensor:
        """(rows, outputs) of what a layer gives, (n, outputs, …), for the same rows."""
        return y.flatten(2).transpose(1, 2).flatten(0, 1)[:: self.step] if y.ndim > 2 else y[:: self.step]


def channels_second(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer reads or gives as (n, channels, …): linear layers have channels last."""
    return x.movedim(-1, 1) if isinstance(layer, nn.Linear) else x
