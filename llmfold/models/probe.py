"""The probe: whether couplings found by names and shapes are what the stock layer computes.

Rows of single units are disturbed, and what the consumers read must change there and nowhere else. MLPs are tried at a
few neurons, whatever their width; attentions at their own width, with nothing else of the layer in memory.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from llmfold.models.base import LayerShape, Role, tensor_path
from llmfold.models.coupling import HeadCoupling, NeuronCoupling
from llmfold.models.finder import tensors_of
from llmfold.models.slots import Slot
from llmfold.models.stock import StockModel

_UNITS, _ROWS, _TOKENS = 8, 5, 6
_TOLERANCE = 1e-4
_UNLIKE = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError, KeyError)
"""What a module raises that is given something else than it is used to."""


@dataclasses.dataclass(frozen=True)
class ByModule:
    """Neurons as the MLP's own module makes them: what its consumer reads.

    Attributes:
        module: the MLP.
        consumer: path of the consumer in it.
        names: by role, the parameter in it.
    """

    module: nn.Module
    consumer: str
    names: Mapping[Role, str]

    def neurons(self, x: Tensor, mlp: Mapping[Role, Tensor]) -> Tensor:
        """Activations (…, n) for inputs (…, hidden)."""
        seen: list[Tensor] = []
        hook = self.module.get_submodule(self.consumer).register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        try:
            sequences = x if x.ndim > 2 else x[None]
            functional_call(self.module, {name: mlp[role] for role, name in self.names.items()}, (sequences,))
        finally:
            hook.remove()
        return seen[0].reshape(*x.shape[:-1], -1)


def confirmed(
    coupling: NeuronCoupling, stock: StockModel, index: int, *, swapped: bool = False
) -> NeuronCoupling | None:
    """The coupling with an activation that gives what the layer's own modules give; None where there is none."""
    generator, layer, hidden = torch.Generator().manual_seed(0), stock.layers[index], stock.hidden
    if coupling.expert is not None:
        return coupling if _expert_agrees(coupling, layer, hidden, generator) else None
    parent, _, name = coupling.gives.rpartition(".")
    if not parent:
        return coupling if _agrees_in_layer(coupling, stock, index, generator) else None
    module = layer.get_submodule(parent)
    start = len(parent) + 1
    names = {role: tensor_path(slot.tensor)[start:] for role, slot in coupling.slots.items()}
    fused = len(set(names.values())) < len(names)
    conv = isinstance(module.get_submodule(name), Conv1D)
    units = coupling.units if conv else _UNITS
    mlp = _random_mlp(coupling, layer, hidden, units, generator)
    x = torch.randn(_ROWS, hidden, generator=generator)
    own = ByModule(module, name, names)
    try:
        made = _by_module(own, coupling, x, mlp, units)
    except _UNLIKE:
        return None
    try:
        if _close(made, coupling.neurons(x, mlp)):
            return coupling
    except _UNLIKE:
        pass  # an activation with parameters of its own
    if fused and not swapped:
        return confirmed(_exchanged(coupling), stock, index, swapped=True)
    if fused or conv:
        return None
    coupling = dataclasses.replace(coupling, own=own)
    for unit in range(units):
        other = {role: value.clone() for role, value in mlp.items()}
        for role in other.keys() & {"gate", "up", "gate_bias", "up_bias"}:
            other[role][unit] += 1
        changed = (own.neurons(x, other) - made).abs().amax(0) > 0
        if changed.nonzero().flatten().tolist() != [unit]:
            return None
    return coupling


def _agrees_in_layer(coupling: NeuronCoupling, stock: StockModel, index: int, generator: torch.Generator) -> bool:
    """Whether the formula gives what a consumer reads that stands, with its producers, in the layer itself."""
    weights = {
        role: (torch.ones if len(shape) == 1 else torch.zeros)(()).expand(shape)
        for role, shape in tensors_of(stock.layers[index]).items()
    }
    widths, names = LayerShape(coupling.units, 0, 0), {role: slot.tensor for role, slot in coupling.slots.items()}
    for role in names.keys() & {"gate", "up", "gate_bias", "up_bias"}:
        shape = weights[names[role]].shape
        each = torch.randn((shape[0], *(1 for _ in shape[1:])), generator=generator)
        weights[names[role]] = each.expand(shape)  # equal entries of a row take no room
    x = torch.randn(1, _TOKENS, stock.hidden, generator=generator)
    try:
        with torch.no_grad():
            seen = stock.watched(index, weights, x, inputs=(coupling.reads, coupling.gives), stop=True)
    except _UNLIKE:
        return False
    read, made = (seen.inputs[path][0].reshape(_TOKENS, -1) for path in (coupling.reads, coupling.gives))
    return _close(made, coupling.neurons(read, coupling.view(weights, widths)))


def _exchanged(coupling: NeuronCoupling) -> NeuronCoupling:
    """The coupling with gate and up projection in each other's place."""
    others = {"gate": "up", "up": "gate", "gate_bias": "up_bias", "up_bias": "gate_bias"}
    return dataclasses.replace(coupling, slots={others.get(role, role): slot for role, slot in coupling.slots.items()})


def _random_mlp(
    coupling: NeuronCoupling, layer: nn.Module, hidden: int, units: int, generator: torch.Generator
) -> dict[Role, Tensor]:
    shapes = tensors_of(layer)
    sizes: dict[Role, tuple[int, ...]] = {"down": (hidden, units), "down_bias": (hidden,)}
    values = {}
    for role, slot in coupling.slots.items():
        if role not in sizes and slot.consumer:
            values[role] = torch.ones(shapes[slot.tensor])  # of the activation
            continue
        values[role] = torch.randn(sizes.get(role, (units, hidden) if slot.matrix else (units,)), generator=generator)
    return values


def _by_module(own: ByModule, coupling: NeuronCoupling, x: Tensor, mlp: Mapping[Role, Tensor], units: int) -> Tensor:
    """Neurons of the module itself, which is given its parameters in its own layout."""
    widths = LayerShape(units, 0, 0)
    tensors: dict[str, Tensor] = {}
    for role, slot in coupling.slots.items():
        name = own.names[role]
        if slot.is_whole:
            tensors[name] = mlp[role]
            continue
        if name not in tensors:
            tensors[name] = _room(coupling, role, mlp, own.names)
        slot.write(tensors[name], mlp[role], widths)
    given = dataclasses.replace(own, names={name: name for name in tensors})
    return given.neurons(x, tensors)


def _room(coupling: NeuronCoupling, role: Role, mlp: Mapping[Role, Tensor], names: Mapping[Role, str]) -> Tensor:
    """An empty tensor that holds all roles stored in one."""
    slot, value = coupling.slots[role], mlp[role]
    parts = sum(name == names[role] for name in names.values())
    shape = list(value.T.shape if slot.matrix and (slot.axis == 0) == slot.consumer else value.shape)
    shape[slot.axis] *= parts
    return value.new_full(shape, torch.nan)


def _expert_agrees(coupling: NeuronCoupling, layer: nn.Module, hidden: int, generator: torch.Generator) -> bool:
    """Whether the module of all experts gives what the formula gives for one of them."""
    module = layer.get_submodule(coupling.reads)
    mlp, widths = _random_mlp(coupling, layer, hidden, _UNITS, generator), LayerShape(_UNITS, 0, 0)
    x, tensors = torch.randn(_ROWS, hidden, generator=generator), {}
    start = len(coupling.reads) + 1
    for name, parameter in module.named_parameters():
        tensors[name] = torch.zeros(()).expand(parameter.shape)
    for role, slot in coupling.slots.items():
        name = tensor_path(slot.tensor)[start:]
        if not any(tensors[name].stride()):  # nothing has been written into it yet
            tensors[name] = _narrow(module, name, slot, coupling.units)
        slot.write(tensors[name], mlp[role], widths)
    assert coupling.expert is not None
    if coupling.router is None:
        given: tuple[Tensor, ...] = (x, torch.full((_ROWS, 1), coupling.expert), torch.ones(_ROWS, 1))
    else:  # sorted by expert
        sorted_rows = x.new_zeros(len(layer.get_parameter(coupling.slots["down"].tensor)), _ROWS, hidden)
        sorted_rows[coupling.expert] = x
        given = (sorted_rows.flatten(0, 1),)
    try:
        made = functional_call(module, tensors, given)
    except _UNLIKE:
        return False
    made = made[0] if isinstance(made, tuple) else made
    if coupling.router is not None:
        made = made.view(-1, _ROWS, hidden)[coupling.expert]
    wanted = nn.functional.linear(coupling.neurons(x, mlp), mlp["down"], mlp.get("down_bias"))
    return _close(made, wanted)


def _narrow(module: nn.Module, name: str, slot: Slot, units: int) -> Tensor:
    """Zeros of a stack's shape with a few neurons in place of all."""
    shape = list(module.get_parameter(name).shape)
    if slot.of_units:
        axis = slot.unit_axis()
        shape[axis] = shape[axis] // units * _UNITS
    return torch.zeros(shape)


def heads_agree(heads: HeadCoupling, stock: StockModel, index: int, widths: LayerShape) -> bool:
    """Whether a unit of heads feeds its own inputs of the consumer, and those alone."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[Role, Tensor] = {}
    producers = {slot.tensor for role, slot in heads.slots.items() if role[0] in "qkv"}
    for role, shape in tensors_of(stock.layers[index]).items():
        if role in producers:
            weights[role] = torch.randn(shape, generator=generator).mul_(0.5)
        else:
            weights[role] = (torch.ones if len(shape) == 1 else torch.zeros)(()).expand(shape)
    x = torch.randn(2, _TOKENS, stock.hidden, generator=generator)

    def outputs() -> Tensor:
        seen = stock.watched(index, weights, x, inputs=(heads.consumer,), stop=True)
        made: Tensor = seen.inputs[heads.consumer][0]
        return made.reshape(-1, widths.head_units, size)

    size = widths.heads // widths.head_units * heads.head_dim
    try:
        with torch.no_grad():
            before = outputs()
            for unit in {0, widths.head_units - 1}:
                kept = {name: weights[name] for name in producers}
                for name in producers:
                    weights[name] = weights[name].clone()
                _disturb(heads, weights, widths, unit)
                changed = (outputs() - before).abs().amax(0) > 0
                weights.update(kept)
                if not changed[unit].any() or changed.any(1).sum() != 1:
                    return False
    except _UNLIKE:
        return False
    return True


def _disturb(heads: HeadCoupling, weights: dict[Role, Tensor], widths: LayerShape, unit: int) -> None:
    """Change the rows of one unit, in place."""
    for role in ("q", "k", "v") if widths.grouped else ("q",):
        slot = heads.slots[role]
        values = slot.read(weights[slot.tensor], widths).clone()
        units = widths.head_units
        rows = values.view(units, len(values) // units, -1)
        rows[unit] *= -1.5
        slot.write(weights[slot.tensor], values, widths)


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * (1 + other.abs().max()))
