"""A narrower copy of a module: tensors put in place, and the sizes that its layers know of themselves."""

import copy
from collections.abc import Mapping, Sequence

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
    narrower = copy.deepcopy(module)
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


def merged(
    tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], groups: Sequence[Groups]
) -> tuple[dict[str, Tensor], tuple[ChannelCoupling, ...]]:
    """Every cluster of every coupling as one unit: what makes units averaged, what reads them summed.

    Args:
        tensors: of the module by name.
        couplings: to merge.
        groups: the clusters of each.

    Returns:
        All tensors, and the couplings as they lie in them.
    """
    result = dict(tensors)
    for coupling, partition in zip(couplings, groups, strict=True):
        for slot in coupling.slots:
            rows = slot.read(result[slot.tensor])
            values = merge_rows(rows, partition, mean=slot.kind != "consumer")
            result[slot.tensor] = slot.replaced(result[slot.tensor], values, partition.first)
    return result, located(tensors, couplings, [partition.first for partition in groups])


def selected(
    tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], kept: Sequence[Tensor]
) -> tuple[dict[str, Tensor], tuple[ChannelCoupling, ...]]:
    """Some units of every coupling alone, as they are; see :func:`merged`."""
    result = dict(tensors)
    for coupling, units in zip(couplings, kept, strict=True):
        for slot in coupling.slots:
            result[slot.tensor] = slot.replaced(result[slot.tensor], slot.read(result[slot.tensor])[units], units)
    return result, located(tensors, couplings, kept)


def located(
    tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], stay: Sequence[Tensor]
) -> tuple[ChannelCoupling, ...]:
    """Couplings as they lie in the narrower tensors, once only the units ``stay`` of each are left."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for coupling, units in zip(couplings, stay, strict=True):
        left = torch.ones(coupling.units, dtype=torch.bool)
        left[units] = False
        for slot in coupling.slots:
            gone.setdefault((slot.tensor, slot.axis), []).append(slot.index[left].flatten())

    def moved(slot: ChannelSlot, units: Tensor) -> ChannelSlot:
        here = ChannelSlot(slot.tensor, slot.axis, slot.index[units], slot.kind)
        return here.shifted(torch.cat(gone[slot.tensor, slot.axis]), tensors[slot.tensor].shape[slot.axis])

    return tuple(
        ChannelCoupling(coupling.name, len(units), tuple(moved(slot, units) for slot in coupling.slots))
        for coupling, units in zip(couplings, stay, strict=True)
    )


def unit_statistics(coupling: ChannelCoupling) -> list[tuple[ChannelSlot, ChannelSlot]]:
    """Running means and variances of a coupling's BatchNorms, in pairs."""
    slots = {slot.tensor: slot for slot in coupling.slots if is_statistic(slot.tensor)}
    means = [slot for name, slot in slots.items() if name.endswith("running_mean")]
    return [(mean, slots[mean.tensor.removesuffix("mean") + "var"]) for mean in means]
