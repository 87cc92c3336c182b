"""A narrower copy of a module: tensors put in place, and the sizes that its layers know of themselves."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmfold.folding.grouping import Groups, merge_rows
from llmfold.modules.coupling import ChannelCoupling, ChannelSlot, is_statistic

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name, detached."""
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def with_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with other tensors, of other widths perhaps; the module is left as it is."""
    narrower = copy.deepcopy(module, _left_out(module, tensors))
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = narrower.get_submodule(path)
        if leaf in owner._parameters:
            before = owner._parameters[leaf]
            wanted = before.requires_grad if before is not None else True
            owner._parameters[leaf] = nn.Parameter(tensor.clone(), requires_grad=wanted)
        else:
            owner._buffers[leaf] = tensor.clone()
    for part in narrower.modules():
        _tell_sizes(part)
    return narrower


def _left_out(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[int, Any]:
    """What a copy need not copy, as the memo of ``deepcopy``: tensors that others take the place of, by every name."""
    own = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    copied = {id(tensor) for name, tensor in own if name not in tensors}
    return {id(tensor): tensor for _, tensor in own if id(tensor) not in copied}


def _tell_sizes(layer: nn.Module) -> None:
    if isinstance(layer, Convolution):
        outputs, inputs = layer.weight.shape[:2]
        if layer.groups > 1 and layer.weight.shape[1] == 1 and layer.groups == layer.in_channels:
            layer.groups = outputs // (layer.out_channels // layer.in_channels)
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
        layer.num_features = len(layer.running_mean)


Places = dict[tuple[str, int], Tensor]
"""By tensor and axis, a mask of the positions that stay."""


def staying(tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], stay: Sequence[Tensor]) -> Places:
    """Which positions stay of every axis that couplings lie on.

    Args:
        tensors: of the module by name.
        couplings: to narrow.
        stay: units of each that stay.
    """
    masks: Places = {}
    for coupling, units in zip(couplings, stay, strict=True):
        gone = torch.ones(coupling.units, dtype=torch.bool)
        gone[units] = False
        for slot in coupling.slots:
            size = tensors[slot.tensor].shape[slot.axis]
            mask = masks.setdefault((slot.tensor, slot.axis), torch.ones(size, dtype=torch.bool))
            mask[slot.index[gone].flatten()] = False
    return masks


Result = tuple[dict[str, Tensor], tuple[ChannelCoupling, ...]]
"""All tensors of a narrower module, and the couplings as they lie in them."""


def rewritten(
    tensors: Mapping[str, Tensor],
    couplings: Sequence[ChannelCoupling],
    stay: Sequence[Tensor],
    values: Callable[[int, ChannelSlot, Tensor], Tensor],
) -> Result:
    """Put new values in the places of the units that stay, slot by slot, and cut all others away.

    Args:
        tensors: of the module by name.
        couplings: to narrow.
        stay: (k,) units of each, ascending.
        values: from the number of a coupling, a slot and its rows (units, r, …) to those of k units.
    """
    result, keep = dict(tensors), staying(tensors, couplings, stay)
    whole: set[tuple[str, int]] = set()
    for number, (coupling, units) in enumerate(zip(couplings, stay, strict=True)):
        for slot in coupling.slots:
            tensor = result[slot.tensor]
            given = values(number, slot, slot.read(tensor))
            if slot.fills(tensor):
                result[slot.tensor] = slot.laid(given.to(tensor.dtype))  # cut as it is written
                whole.add((slot.tensor, slot.axis))
            else:
                result[slot.tensor] = slot.of(units).write(tensor, given)
    for (name, axis), mask in keep.items():
        if (name, axis) in whole:
            continue
        result[name] = result[name].index_select(axis, mask.nonzero().flatten().to(result[name].device))
    places = {key: mask.cumsum(0) - 1 for key, mask in keep.items()}

    def moved(slot: ChannelSlot) -> ChannelSlot:
        return ChannelSlot(slot.tensor, slot.axis, places[slot.tensor, slot.axis][slot.index], slot.kind)

    narrower = tuple(
        ChannelCoupling(coupling.name, len(units), tuple(moved(slot.of(units)) for slot in coupling.slots))
        for coupling, units in zip(couplings, stay, strict=True)
    )
    return result, narrower


def merged(tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], groups: Sequence[Groups]) -> Result:
    """Every cluster of every coupling as one unit: what makes units averaged, what reads them summed."""

    def values(number: int, slot: ChannelSlot, rows: Tensor) -> Tensor:
        return merge_rows(rows, groups[number], mean=slot.kind != "consumer")

    return rewritten(tensors, couplings, [partition.first for partition in groups], values)


def selected(tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], kept: Sequence[Tensor]) -> Result:
    """Some units of every coupling alone, as they are."""
    return rewritten(tensors, couplings, kept, lambda number, slot, rows: rows[kept[number]])


def unit_statistics(coupling: ChannelCoupling) -> list[tuple[ChannelSlot, ChannelSlot]]:
    """Running means and variances of a coupling's BatchNorms, in pairs."""
    slots = {slot.tensor: slot for slot in coupling.slots if is_statistic(slot.tensor)}
    means = [slot for name, slot in slots.items() if name.endswith("running_mean")]
    return [(mean, slots[mean.tensor.removesuffix("mean") + "var"]) for mean in means]
