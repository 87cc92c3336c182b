"""Finding the couplings of a stock decoder layer, by the names and shapes of its modules."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llmfold.models.base import Role, role_of
from llmfold.models.coupling import HeadCoupling, NeuronCoupling
from llmfold.models.slots import Block, Interleaved, QueryKeyValue, Slot

GATED = [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("w_0", "w_1", "w_out")]
"""Names of gate, up and down projections that are modules of their own."""
FUSED = [
    *(("gate_up_proj", "down_proj"), ("up_gate_proj", "down_proj"), ("input_linear", "output_linear"), ("fc1", "fc2")),
    *(("Wi", "Wo"), ("wi", "wo"), ("linear_fc1", "linear_fc2"), ("in_proj", "out_proj"), ("w1", "w2")),
]
"""Names of projections that give gate and up side by side, and of the one that reads their product."""
PLAIN = [
    *(("fc1", "fc2"), ("c_fc", "c_proj"), ("dense_h_to_4h", "dense_4h_to_h"), ("up_proj", "down_proj")),
    *(("fc_in", "fc_out"), ("w1", "w2"), ("w_in", "w_out"), ("wi", "wo"), ("linear_in", "linear_out"), ("0", "2")),
]
"""Names of the two projections of an MLP without a gate."""
SEPARATE_HEADS = (
    *(("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(("q_proj", "k_proj", "v_proj", "dense"), ("wq", "wk", "wv", "wo")),
)
FUSED_HEADS = (("qkv_proj", "o_proj", False), ("query_key_value", "dense", True), ("c_attn", "c_proj", False))
"""Names of a fused projection and of its consumer, and whether the rows of each KV group stand together."""
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation", "ffn_act", "activation_func")


def register_projections(*names: str) -> None:
    """Make known how an MLP's projections are called: gate, up and down, or those of one without a gate.

    The probe decides in every layer whether they are what they are called.

    Raises:
        ValueError: neither three names nor two.
    """
    if len(names) == 3:
        GATED.append((names[0], names[1], names[2]))
    elif len(names) == 2:
        PLAIN.append((names[0], names[1]))
    else:
        raise ValueError(f"{len(names)} names: an MLP has gate, up and down projection, or up and down alone")


def linear(module: Any) -> bool:
    """Whether a module multiplies by one matrix."""
    return isinstance(module, nn.Linear | Conv1D)


def _inputs(module: Any) -> int:
    """Features that a linear module reads."""
    return int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])


def _outputs(module: Any) -> int:
    return int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])


def _slots(path: str, module: Any, role: Role, *, consumer: bool = False, rows: Any = None) -> dict[Role, Slot]:
    """Slots of a linear module's weight and bias."""
    transposed = isinstance(module, Conv1D)
    options = {} if rows is None else {"rows": rows}
    found = {role: Slot(role_of(f"{path}.weight"), axis=int(consumer != transposed), consumer=consumer, **options)}
    if module.bias is not None:
        # The bias of a consumer has no axis of units: it is handed over whole.
        found[f"{role}_bias"] = Slot(
            role_of(f"{path}.bias"), matrix=False, consumer=consumer, **({} if consumer else options)
        )
    return found


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    for name in _ACTIVATIONS:
        function: Any = getattr(module, name, None)
        if callable(function):
            return function  # type: ignore[no-any-return]
    return None


def _learned(module: nn.Module, path: str, slots: dict[Role, Slot]) -> dict[Role, Slot]:
    """Slots of an MLP's other parameters, such as its activation's own, which no unit goes with."""
    if not path:
        return {}
    known = {slot.tensor for slot in slots.values()}
    names = {name: role_of(f"{path}.{name}") for name in module.state_dict()}
    return {n: Slot(tensor, matrix=False, consumer=True) for n, tensor in names.items() if tensor not in known}


@dataclass(frozen=True)
class _Elementwise:
    """``act(gate) * up``, or ``act(up)`` without a gate."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, gate: Tensor | None, up: Tensor) -> Tensor:
        return self.function(up) if gate is None else self.function(gate) * up


@dataclass(frozen=True)
class _OfModule:
    """The module's own combination of a fused gate and up projection."""

    combine: Callable[[Tensor], Tensor]
    interleaved: bool

    def __call__(self, gate: Tensor | None, up: Tensor) -> Tensor:
        assert gate is not None
        both = torch.stack((gate, up), -1).flatten(-2) if self.interleaved else torch.cat((gate, up), -1)
        return self.combine(both)


def neuron_couplings(layer: nn.Module) -> Iterator[NeuronCoupling]:
    """Couplings of all MLPs and experts of a stock layer that are recognised, in module order."""
    taken: list[str] = []
    for path, module in layer.named_modules():
        if "norm" in path or any(path == one or path.startswith(f"{one}.") for one in taken):
            continue
        found = list(_experts(path, module)) or list(_mlp(path, module))
        if found:
            taken.append(path)
            yield from found


def _forms() -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Names of producers and of the consumer, and whether one producer gives gate and up side by side."""
    yield from (((gate, up), down, False) for gate, up, down in GATED)
    yield from (((both,), down, True) for both, down in FUSED)
    yield from (((up,), down, False) for up, down in PLAIN)


def _mlp(path: str, module: nn.Module) -> Iterator[NeuronCoupling]:
    function = _activation(module) or F.silu  # some name it in their forward pass alone; the probe tells
    prefix = f"{path}." if path else ""
    for producers, down, fused in _forms():
        modules = [getattr(module, name, None) for name in (*producers, down)]
        if not all(map(linear, modules)):
            continue
        *made, consumer = modules
        units, roles = _inputs(consumer), ("gate", "up") if fused or len(producers) == 2 else ("up",)
        if any(_outputs(producer) != (2 if fused else 1) * units for producer in made):
            continue
        slots: dict[Role, Slot] = {}
        for part, role in enumerate(roles):
            number, rows = (0, Block(part, 2)) if fused else (part, None)
            slots |= _slots(prefix + producers[number], made[number], role, rows=rows)
        slots |= _slots(prefix + down, consumer, "down", consumer=True)
        slots |= _learned(module, path, slots)
        reads, gives = prefix + producers[-1], prefix + down
        yield NeuronCoupling(slots, path or producers[-1], reads, gives, units, _Elementwise(function))
        return


@dataclass(frozen=True)
class _Stack:
    """How experts lie in the tensors of a module that holds all of them.

    Attributes:
        transposed: whether a matrix stands as (inputs, outputs).
        fused: name of the parameter with the producers.
        gated: whether it holds gate and up.
        interleaved: whether these alternate row by row.
        biased: whether there are biases.
        activation: between producers and consumer.
        router: path of the module that gives every expert's share, where shares scale what experts are given.
    """

    transposed: bool
    fused: str
    gated: bool
    interleaved: bool
    biased: bool
    activation: Any
    router: str | None = None


def _stack(path: str, module: Any) -> _Stack | None:
    """How a module's experts lie, if it is a stack of such."""
    down, fused = (getattr(module, name, None) for name in ("down_proj", "gate_up_proj"))
    if not isinstance(down, nn.Parameter) or down.ndim != 3:
        return None
    if hasattr(module, "is_transposed"):  # as transformers marks them
        gated, interleaved = bool(module.has_gate), not getattr(module, "is_concatenated", True)
        activation = _OfModule(module._apply_gate, interleaved) if gated else _Elementwise(module.act_fn)
        name = "gate_up_proj" if gated else "up_proj"
        return _Stack(bool(module.is_transposed), name, gated, interleaved, bool(module.has_bias), activation)
    function, (experts, units, hidden) = _activation(module), down.shape
    if fused is None or function is None or fused.shape != (experts, hidden, 2 * units):
        return None
    router = f"{path.rpartition('.')[0]}.router"  # Llama 4 hands its experts tokens that it has scaled
    return _Stack(True, "gate_up_proj", True, False, False, _Elementwise(function), router)


def _experts(path: str, module: Any) -> Iterator[NeuronCoupling]:
    """Couplings of a stack of experts."""
    stack = _stack(path, module)
    if stack is None:
        return
    down = module.down_proj
    units = int(down.shape[1 if stack.transposed else 2])
    producer, reader = (1, 0) if stack.transposed else (0, 1)
    for number in range(len(down)):
        slots: dict[Role, Slot] = {}
        for part, role in enumerate(("gate", "up") if stack.gated else ("up",)):
            rows = (Interleaved if stack.interleaved else Block)(part, 2) if stack.gated else Block(0, 1)
            slots[role] = Slot(f"{path}.{stack.fused}", producer, expert=number, rows=rows)
            if stack.biased:
                slots[f"{role}_bias"] = Slot(f"{path}.{stack.fused}_bias", matrix=False, expert=number, rows=rows)
        slots["down"] = Slot(f"{path}.down_proj", reader, consumer=True, expert=number)
        if stack.biased:
            slots["down_bias"] = Slot(f"{path}.down_proj_bias", matrix=False, consumer=True, expert=number)
        name, gives = f"{path}.{number}", path if stack.router is None else path.rpartition(".")[0]
        yield NeuronCoupling(slots, name, path, gives, units, stack.activation, expert=number, router=stack.router)


def head_coupling(layer: nn.Module) -> HeadCoupling | None:
    """The coupling of a stock layer's attention, or None where none is recognised."""
    for path, module in layer.named_modules():
        head_dim = getattr(module, "head_dim", None) or getattr(module, "head_size", None)
        if not isinstance(head_dim, int):
            continue
        for *producers, consumer in SEPARATE_HEADS:
            modules = [getattr(module, name, None) for name in (*producers, consumer)]
            if all(map(linear, modules)):
                slots: dict[Role, Slot] = {}
                for role, name, part in zip("qkv", producers, modules, strict=False):
                    slots |= _slots(f"{path}.{name}", part, role)
                slots |= _slots(f"{path}.{consumer}", modules[3], "o", consumer=True)
                return HeadCoupling(slots, f"{path}.{consumer}", head_dim)
        for fused, consumer, by_group in FUSED_HEADS:
            both = [getattr(module, name, None) for name in (fused, consumer)]
            if all(map(linear, both)):
                slots = {}
                for part, role in enumerate("qkv"):
                    slots |= _slots(f"{path}.{fused}", both[0], role, rows=QueryKeyValue(part, head_dim, by_group))
                slots |= _slots(f"{path}.{consumer}", both[1], "o", consumer=True)
                return HeadCoupling(slots, f"{path}.{consumer}", head_dim)
    return None


def tensors_of(layer: nn.Module) -> Mapping[Role, tuple[int, ...]]:
    """Shapes of a layer's parameters and persistent buffers by name."""
    return {role_of(name): tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
