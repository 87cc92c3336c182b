"""From a ratio to widths of couplings."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from llmfold.errors import UsageError
from llmfold.modules.coupling import ChannelCoupling, Couplings
from llmfold.modules.narrow import with_tensors
from llmfold.modules.probe import confirmed
from llmfold.modules.projection import with_projections
from llmfold.modules.trace import couplings_of

RatioOf = Literal["parameters", "channels"]
_BISECTIONS = 40


@dataclass(frozen=True)
class ModulePlan:
    """What would become of a module.

    Attributes:
        couplings: that are narrowed, and what is kept with the reason.
        widths: units that stay by name of a coupling.
        before: parameters of the module.
        after: parameters once it is folded.
    """

    couplings: Couplings
    widths: Mapping[str, int]
    before: int
    after: int

    @property
    def unchanged(self) -> bool:
        """Whether all units stay."""
        return all(self.widths[coupling.name] == coupling.units for coupling in self.couplings.found)


def plan_module(
    module: nn.Module,
    example_inputs: Sequence[Any],
    ratio: float = 0.3,
    *,
    ratio_of: RatioOf = "parameters",
    widths: Mapping[str, int] | None = None,
    heads: bool = False,
) -> ModulePlan:
    """Widths that a fold by these options would have; see :func:`llmfold.modules.fold.fold_module`."""
    dense = with_projections(with_tensors(module, {}).eval(), example_inputs)
    return planned(module, dense, example_inputs, ratio, ratio_of, widths, heads=heads)


def planned(
    module: nn.Module,
    projected: nn.Module,
    example_inputs: Sequence[Any],
    ratio: float,
    ratio_of: RatioOf,
    widths: Mapping[str, int] | None,
    *,
    heads: bool = False,
) -> ModulePlan:
    """The plan of a module, given also as :func:`with_projections` gives it.

    Raises:
        UsageError: a ratio outside [0, 1), widths that are none, nothing to narrow, or too little to meet the ratio.
    """
    if not 0 <= ratio < 1:
        raise UsageError(f"ratio must be at least 0 and below 1, got {ratio:g}")
    if ratio_of not in ("parameters", "channels"):
        raise UsageError(f"ratio_of must be parameters or channels, got {ratio_of!r}")
    couplings = tried_couplings(projected, example_inputs, heads=heads)
    tensors = {name: parameter.detach() for name, parameter in projected.named_parameters()}
    before = sum(parameter.numel() for parameter in module.parameters())
    if ratio_of == "channels" or not ratio:
        chosen = uniform(couplings.found, ratio)
    else:
        chosen = by_parameters(couplings.found, tensors, (1 - ratio) * before)
    for name, width in (widths or {}).items():
        whole = next((c.units for c in couplings.found if c.name == name), None)
        if whole is None or not 1 <= width <= whole:
            known = ", ".join(f"{c.name} (1 to {c.units})" for c in couplings.found)
            raise UsageError(f"no width {width} for {name}: the module has {known}")
        chosen[name] = width
    same = all(chosen[c.name] == c.units for c in couplings.found)
    return ModulePlan(couplings, chosen, before, before if same else parameters(couplings.found, tensors, chosen))


def tried_couplings(module: nn.Module, example_inputs: Sequence[Any], *, heads: bool = False) -> Couplings:
    """Couplings of a module in evaluation that the probe confirms; raises UsageError where there are none.

    Heads of attentions are kept unless ``heads``.
    """
    traced = couplings_of(module, example_inputs)
    if not heads:
        kept = {c.name: "heads of an attention stay unless they are asked for" for c in traced.found if c.heads}
        found = tuple(c for c in traced.found if not c.heads)
        traced = dataclasses.replace(traced, found=found, kept={**traced.kept, **kept})
    couplings = confirmed(module, traced, example_inputs)
    if not couplings.found:
        reasons = "; ".join(f"{name}: {why}" for name, why in couplings.kept.items()) or "it has no channels"
        raise UsageError(f"nothing in the module can be narrowed ({reasons})")
    return couplings


def uniform(couplings: Sequence[ChannelCoupling], ratio: float) -> dict[str, int]:
    """The same fraction of every coupling's units, rounded; at least one stays."""
    return {c.name: max(1, round(c.units * (1 - ratio))) for c in couplings}


def parameters(couplings: Sequence[ChannelCoupling], tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> int:
    """Entries of all tensors at some widths."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return sum(map(math.prod, narrowed_shapes(couplings, shapes, widths).values()))


def narrowed_shapes(
    couplings: Sequence[ChannelCoupling], shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Shapes of some tensors by name, at some widths."""
    cut: dict[str, list[int]] = {name: list(shape) for name, shape in shapes.items()}
    for coupling in couplings:
        for slot in coupling.slots:
            if slot.tensor in cut:
                cut[slot.tensor][slot.axis] -= (coupling.units - widths[coupling.name]) * slot.index.shape[1]
    return {name: tuple(shape) for name, shape in cut.items()}


def by_parameters(couplings: Sequence[ChannelCoupling], tensors: Mapping[str, Tensor], most: float) -> dict[str, int]:
    """The largest uniform fraction of units with at most so many parameters."""
    low, high = 0.0, 1.0
    if parameters(couplings, tensors, uniform(couplings, high)) > most:
        raise UsageError("the ratio is larger than what the couplings of the module hold: choose a smaller one")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if parameters(couplings, tensors, uniform(couplings, middle)) > most:
            low = middle
        else:
            high = middle
    return uniform(couplings, high)
