"""The probe: whether couplings are what the module computes, by units planted twice that must fold without a trace.

All units of a coupling are paired at random; of each pair one is made equal to the other in all that makes them. If
the coupling says truly what belongs to a unit, merging each pair changes nothing that the module gives.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmfold.folding.grouping import Groups
from llmfold.inversion.deep import float_tensors
from llmfold.modules.coupling import ChannelCoupling, Couplings
from llmfold.modules.narrow import merged, tensors_of, with_tensors

_TOLERANCE = 1e-7


def confirmed(module: nn.Module, couplings: Couplings, example_inputs: Sequence[Any]) -> Couplings:
    """The couplings whose planted duplicates fold exactly, in float64; the others are kept, with a sentence."""
    wide = copy.deepcopy(module).double().eval()
    inputs = _double(tuple(example_inputs))
    if folds_exactly(wide, couplings.found, inputs):
        return couplings
    right: list[ChannelCoupling] = []
    wrong: dict[str, str] = {}
    for coupling in couplings.found:
        if folds_exactly(wide, (*right, coupling), inputs):
            right.append(coupling)
        else:
            wrong[coupling.name] = "units planted twice do not fold exactly"
    return Couplings(tuple(right), {**couplings.kept, **wrong}, couplings.norms)


def folds_exactly(module: nn.Module, couplings: Sequence[ChannelCoupling], inputs: tuple[Any, ...]) -> bool:
    """Whether pairs of equal units can be merged in all these couplings and the module gives the same."""
    generator = torch.Generator().manual_seed(0)
    tensors: Mapping[str, Tensor] = tensors_of(module)
    groups = []
    for coupling in couplings:
        groups.append(_pairs(coupling.units, generator))
        tensors = planted(tensors, coupling, groups[-1])
    with torch.no_grad():
        wanted = float_tensors(functional_call(module, dict(tensors), inputs, tie_weights=False))
        try:
            given = outputs(with_tensors(module, merged(tensors, couplings, groups)[0]), inputs)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False  # the module insists on a width
    return all(map(_close, given, wanted))


def planted(tensors: Mapping[str, Tensor], coupling: ChannelCoupling, groups: Groups) -> dict[str, Tensor]:
    """Tensors in which every unit is made as the first of its group is; what reads them differs as before."""
    source, result = groups.first[groups.labels], dict(tensors)
    for slot in coupling.of_kind("producer", "norm"):
        result[slot.tensor] = slot.write(result[slot.tensor], slot.read(result[slot.tensor])[source])
    return result


def _pairs(units: int, generator: torch.Generator) -> Groups:
    order = torch.randperm(units, generator=generator)
    labels = torch.empty(units, dtype=torch.int64)
    labels[order] = torch.arange(units) // 2
    _, numbered = torch.unique(labels, return_inverse=True)
    first = {int(label): place for place, label in reversed(list(enumerate(numbered.tolist())))}
    rank = {label: number for number, label in enumerate(sorted(first, key=first.__getitem__))}
    return Groups(torch.tensor([rank[label] for label in numbered.tolist()]))


def outputs(module: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Floating-point tensors that a module gives, in order."""
    return float_tensors(module(*inputs))


def _double(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * (1e-3 + other.abs().max()))
