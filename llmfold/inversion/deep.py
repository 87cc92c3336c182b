"""Deep Inversion (Yin et al., Dreaming to Distill, CVPR 2020): images from nothing but a classifier with BatchNorm.

Pixels descend the cross-entropy of classes drawn in turn, the squared distance between each BatchNorm's statistics on
the batch and its running ones, and the total variation. No image from outside is read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from llmfold.errors import UsageError

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class InversionOptions:
    """Settings of the descent.

    Attributes:
        count: images, one batch.
        steps: of Adam.
        rate: of the first step; it falls to zero as a cosine.
        statistics: weight of the distance between BatchNorm statistics, summed over layers.
        variation: weight of the mean squared difference between neighbouring pixels.
        labels: whether classes are asked for; False where the outputs are no class scores.
    """

    count: int = 128
    steps: int = 200
    rate: float = 0.1
    statistics: float = 1.0
    variation: float = 0.05
    labels: bool = True


def batch_norms(module: nn.Module) -> list[Norm]:
    """The BatchNorms of a module that keep running statistics, in the order of its submodules."""
    return [m for m in module.modules() if isinstance(m, Norm) and m.running_mean is not None]


def float_tensors(given: Any) -> list[Tensor]:
    """The floating-point tensors of whatever a module gives, in order: class scores first, of a classifier."""
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def inverted_inputs(
    module: nn.Module,
    shape: Sequence[int],
    options: InversionOptions = InversionOptions(),
    seed: int = 0,
    notify: Callable[[str], None] = lambda stage: None,
) -> Tensor:
    """A batch of inputs on which the module's BatchNorms see the statistics that they were trained on.

    Args:
        module: gives class scores (count, classes) first, or anything where ``options.labels`` is False; left as it
            is.
        shape: of one input, without the batch.
        options: see :class:`InversionOptions`.
        seed: of the start and of the shifts.
        notify: told how far the descent is.

    Returns:
        (count, *shape) float32, on the device of the module.

    Raises:
        UsageError: the module has no BatchNorm with running statistics, so nothing tells what its inputs are.
    """
    if not batch_norms(module):
        raise UsageError("the module has no BatchNorm with running statistics to invert: pass inputs of its domain")
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(options.count, *shape, generator=generator).to(device).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=options.rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    with torch.enable_grad(), _frozen(module), _distances(module) as distances:
        for step in range(options.steps):
            notify(f"inverting images: {step:,} of {options.steps:,}")
            distances.clear()
            scores = next(iter(float_tensors(module(_shifted(x, generator)))), None)
            loss = options.statistics * torch.stack(distances).sum()
            if options.labels and scores is not None:
                classes = torch.arange(options.count, device=device) % scores.shape[1]
                loss = loss + F.cross_entropy(scores, classes)
            if x.ndim == 4:
                loss = loss + options.variation * _variation(x)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return x.detach()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images rolled by up to two pixels and mirrored two times in five, so that no pixel is tuned to its place."""
    if x.ndim != 4:
        return x
    down, right, mirrored = torch.randint(0, 5, (3,), generator=generator).tolist()
    rolled = x.roll((down - 2, right - 2), (2, 3))
    return rolled.flip(3) if mirrored % 2 else rolled


def _variation(x: Tensor) -> Tensor:
    return (x[..., 1:, :] - x[..., :-1, :]).square().mean() + (x[..., 1:] - x[..., :-1]).square().mean()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """The module in evaluation, with no gradients of its own; both are put back."""
    training = {m: m.training for m in module.modules()}
    wanted = {p: p.requires_grad for p in module.parameters()}
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, was in training.items():
            part.training = was
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)


@contextmanager
def _distances(module: nn.Module) -> Iterator[list[Tensor]]:
    """Filled, in every pass, with the distance of each BatchNorm's input statistics from the running ones.

    Means count in running standard deviations and variances relative to the running ones, averaged over channels, so
    that layers of any scale weigh the same.
    """
    found: list[Tensor] = []

    def watch(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, mean, var = args[0], norm.running_mean, norm.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        scale = var + 1e-5
        apart = (x.mean(axes) - mean).square() / scale
        spread = x.var(axes, unbiased=False) / scale - 1
        found.append((apart + spread.square()).mean())

    hooks = [norm.register_forward_pre_hook(watch) for norm in batch_norms(module)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
