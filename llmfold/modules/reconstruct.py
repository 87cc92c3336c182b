"""``self`` for traced modules: units chosen by what their loss costs after repair, then layer after layer refit.

Layers go in the order they run. Each is fitted by least squares on what the layers before it, already narrower, give
it, to what it gave in the dense module, and the BatchNorm behind it gets statistics in the same pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmfold.errors import UsageError
from llmfold.inversion.deep import Norm
from llmfold.modules.activations import Layer, Rows, channels_second, watch_layers
from llmfold.modules.coupling import ChannelCoupling, ChannelSlot
from llmfold.modules.narrow import selected, staying, tensors_of, with_tensors
from llmfold.modules.statistics import matched, moments, pooled
from llmfold.repair.least_squares import ActivationSums, activation_sums, refit, refit_bias
from llmfold.selection.elimination import eliminate_units

SELECTION_RIDGE = 1e-3
_WEIGHT = ".weight"
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Pull of a layer's rows towards what they were, as fractions of the mean diagonal; rows held back choose."""


@dataclass(frozen=True)
class ReconstructionOptions:
    """Settings.

    Attributes:
        rows: of a layer's inputs that are fitted on, about.
        held_back: of them, the last fraction chooses the ridge.
        variance: how far the variance of what a layer gives is brought back, see
            :func:`llmfold.modules.statistics.matched`.
    """

    rows: int = 8192
    held_back: float = 0.125
    variance: float = 1.0


@dataclass(frozen=True)
class _Target:
    """What a layer gave in the dense module: some rows, and the moments of all of them."""

    rows: Tensor
    moments: tuple[Tensor, Tensor]


def reconstructed(
    module: nn.Module,
    couplings: Sequence[ChannelCoupling],
    widths: Mapping[str, int],
    inputs: Tensor,
    options: ReconstructionOptions = ReconstructionOptions(),
    notify: Callable[[str], None] = lambda stage: None,
) -> nn.Module:
    """A narrower module that gives about what the module gives on the inputs.

    Args:
        module: in evaluation; left as it is.
        couplings: to narrow.
        widths: units that stay by name of a coupling.
        inputs: (n, …), the module's only argument.
        options: see :class:`ReconstructionOptions`.
        notify: told how many layers are refit.
    """
    tensors = tensors_of(module)
    kept = choose(module, couplings, widths, inputs, options)
    result = with_tensors(module, selected(tensors, couplings, kept)[0])
    run = _order(module, inputs)
    stays = _staying(couplings, kept, tensors)
    narrowed = [path for path in run.layers if (path, 0) in stays or (path, 1) in stays]
    targets = _targets(module, narrowed, stays, inputs, options)
    for number, path in enumerate(narrowed):
        notify(f"refitting layers: {number} of {len(narrowed)}")
        _refit_layer(result, path, run.norms.get(path), targets.pop(path), inputs, options)
    return result


@dataclass(frozen=True)
class _Run:
    """Layers that run once, in that order, and the BatchNorm that reads what a layer gives."""

    layers: list[str]
    norms: dict[str, str]


def _order(module: nn.Module, inputs: Tensor) -> _Run:
    names = {path: part for path, part in module.named_modules() if isinstance(part, Layer | Norm)}
    layers: list[str] = []
    given: list[tuple[str, Tensor]] = []
    norms: dict[str, str] = {}

    def watch(path: str, x: Tensor, y: Tensor) -> None:
        if isinstance(names[path], Norm):
            norms.update({layer: path for layer, tensor in given if tensor is x})
        else:
            layers.append(path)
            given.append((path, y))

    watch_layers(module, inputs[:2], list(names), watch)
    return _Run([path for path in layers if layers.count(path) == 1], norms)


def _staying(
    couplings: Sequence[ChannelCoupling], kept: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> dict[tuple[str, int], Tensor]:
    """By layer and axis of its weight, the positions that stay, ascending; axes that keep all are not named."""
    return {
        (name.removesuffix(_WEIGHT), axis): mask.nonzero().flatten()
        for (name, axis), mask in staying(tensors, couplings, kept).items()
        if name.endswith(_WEIGHT) and not bool(mask.all())
    }


def choose(
    module: nn.Module,
    couplings: Sequence[ChannelCoupling],
    widths: Mapping[str, int],
    inputs: Tensor,
    options: ReconstructionOptions,
) -> list[Tensor]:
    """Units that stay, ascending, coupling by coupling: backward elimination on what their readers see.

    A channel that a convolution reads at several offsets counts as one feature with several rows of weights; outputs
    count in standard deviations of what the reader gives. Readers come before what they read, so that outputs which
    go themselves do not count.
    """
    kept: list[Tensor] = [torch.arange(coupling.units) for coupling in couplings]
    grams = _grams(module, couplings, inputs, options)
    for number in reversed(range(len(couplings))):
        coupling = couplings[number]
        width = widths[coupling.name]
        if width == coupling.units:
            continue
        alive = _staying(couplings, kept, tensors_of(module))
        blocks = []
        for slot in coupling.of_kind("consumer"):
            path = slot.tensor.rpartition(".")[0]
            rows = slot.read(module.state_dict()[slot.tensor])  # (units, r, outputs, …)
            rows = rows.movedim(2, 0) / grams.spread[path].view(-1, *[1] * (rows.ndim - 1))
            if (path, 0) in alive:
                rows = rows[alive[path, 0]]
            blocks.append(rows.movedim(0, 2).flatten(1))
        kept[number] = eliminate_units(grams.sums[coupling.name], torch.cat(blocks, 1), width, SELECTION_RIDGE).kept
    return kept


@dataclass(frozen=True)
class _Grams:
    """Sums over a coupling's units, pooled over its readers, and standard deviations of what each reader gives."""

    sums: dict[str, ActivationSums]
    spread: dict[str, Tensor]


def _grams(
    module: nn.Module, couplings: Sequence[ChannelCoupling], inputs: Tensor, options: ReconstructionOptions
) -> _Grams:
    readers: dict[str, list[tuple[str, ChannelSlot]]] = {}
    for coupling in couplings:
        for slot in coupling.of_kind("consumer"):
            readers.setdefault(slot.tensor.rpartition(".")[0], []).append((coupling.name, slot))
    sums: dict[str, ActivationSums] = {}
    second: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(path: str, x: Tensor, y: Tensor) -> None:
        layer = module.get_submodule(path)
        second.setdefault(path, []).append(moments(channels_second(layer, y)))
        for name, slot in readers[path]:
            units = channels_second(layer, x).movedim(1, 0)[slot.index].flatten(1).T
            rows = units[:: Rows.of(len(inputs), len(units) // len(x), options.rows).step]
            found = activation_sums([(rows.float(), rows.new_ones(len(rows), dtype=torch.float32))])
            sums[name] = sums[name] + found if name in sums else found

    watch_layers(module, inputs, list(readers), watch)
    if unseen := sorted(readers.keys() - second.keys()):
        raise UsageError(
            f"method=self measures on what layers are given, and {unseen[0]} is never called, though its weight is "
            "used: pass method=paper, or another that looks at weights alone"
        )
    spread = {
        p: torch.stack([v + m.square() for m, v in of]).mean(0).clamp_min(1e-12).sqrt() for p, of in second.items()
    }
    return _Grams(sums, spread)


def _targets(
    dense: nn.Module,
    paths: Sequence[str],
    stays: Mapping[tuple[str, int], Tensor],
    inputs: Tensor,
    options: ReconstructionOptions,
) -> dict[str, _Target]:
    """What layers give in the dense module at the outputs that stay, from one pass."""
    rows: dict[str, list[Tensor]] = {path: [] for path in paths}
    parts: dict[str, list[tuple[int, Tensor, Tensor]]] = {path: [] for path in paths}

    def watch(path: str, x: Tensor, y: Tensor) -> None:
        layer = dense.get_submodule(path)
        y = channels_second(layer, y)
        y = y[:, stays[path, 0]] if (path, 0) in stays else y
        rows[path].append(_rows_of(y, len(inputs), options).outputs(y))
        parts[path].append((len(y), *moments(y)))

    watch_layers(dense, inputs, paths, watch)
    return {path: _Target(torch.cat(rows[path]), pooled(parts[path])) for path in paths}


def _rows_of(y: Tensor, images: int, options: ReconstructionOptions) -> Rows:
    """Rows that are looked at of a layer that gives y (n, outputs, …) for a batch of so many images."""
    return Rows.of(images, y[0, 0].numel(), options.rows)


def _refit_layer(
    folded: nn.Module,
    path: str,
    norm: str | None,
    target: _Target,
    inputs: Tensor,
    options: ReconstructionOptions,
) -> None:
    """Fit one layer of the narrower module, in place, and what its BatchNorm expects."""
    layer = folded.get_submodule(path)
    assert isinstance(layer, Layer)
    read: list[Tensor] = []
    watch_layers(folded, inputs, [path], lambda _, x, y: read.append(x), stop=True)
    if _can_be_fitted(layer):
        with torch.no_grad():
            step = _rows_of(channels_second(layer, layer(read[0][:1])), len(inputs), options)
        features = torch.cat([step.inputs(layer, x) for x in read])
        _solve(layer, features, target.rows, norm is not None, options)
    if norm is not None:
        with torch.no_grad():
            given = pooled([(len(x), *moments(channels_second(layer, layer(x)))) for x in read])
        _match(folded, norm, target.moments, given, options)


def _can_be_fitted(layer: Layer) -> bool:
    """Whether a layer's inputs are known row by row; others keep the rows of the units that stay."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _solve(layer: Layer, features: Tensor, y: Tensor, free_mean: bool, options: ReconstructionOptions) -> None:
    """Rows of a layer, and its bias, by least squares with a ridge towards what they are; in place.

    The target is not what the layer would give on these inputs, so the rest R = Y − X W enters as features of its
    own, read by the identity and all to be removed: W + (XᵀX + λ)⁻¹ Xᵀ R.
    """
    features, y = features.float(), y.float()
    weight = layer.weight.detach().float().flatten(1)
    bias = None if layer.bias is None else layer.bias.detach().float()
    rest = y - features @ weight.T - (0 if bias is None else bias)
    both = torch.cat((features, rest), 1)
    consumer = torch.cat((weight.T, torch.eye(rest.shape[1], device=weight.device)))
    kept = torch.arange(features.shape[1])
    held = int(len(both) * options.held_back)
    even = both.new_ones(len(both))
    train = activation_sums([(both[: len(both) - held], even[: len(both) - held])])
    whole = train + activation_sums([(both[len(both) - held :], even[len(both) - held :])])
    centre = free_mean or bias is not None

    def fitted(sums: ActivationSums, ridge: float) -> Tensor:
        return refit(sums.centred() if centre else sums, consumer, kept, ridge)

    def error(rows: Tensor) -> float:
        wrong = (y - features @ rows)[len(both) - held :]
        return float((wrong - wrong.mean(0) if centre else wrong).square().sum())

    best = min(RIDGES, key=lambda ridge: error(fitted(train, ridge)))
    rows = fitted(whole, best)
    with torch.no_grad():
        layer.weight.copy_(rows.T.reshape(layer.weight.shape))
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(refit_bias(whole, consumer, kept, rows, bias))


def _match(
    folded: nn.Module,
    path: str,
    target: tuple[Tensor, Tensor],
    given: tuple[Tensor, Tensor],
    options: ReconstructionOptions,
) -> None:
    """Statistics of a narrower BatchNorm, in place: it holds the dense ones of its units so far."""
    norm = folded.get_submodule(path)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    mean, variance = matched(target, given, (norm.running_mean, norm.running_var), options.variance)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
