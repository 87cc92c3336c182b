"""The probe: right couplings are confirmed, wrong ones are not."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stock_models import tiny_stock
from torch import Tensor, nn

from llmfold.models.coupling import HeadCoupling, NeuronCoupling
from llmfold.models.finder import head_coupling, neuron_couplings
from llmfold.models.probe import confirmed, heads_agree
from llmfold.models.slots import QueryKeyValue
from llmfold.models.stock import StockModel

HIDDEN = 32
SEPARATE = ("llama", "gemma2", "opt")
FUSED = ("phi3", "glm4")
STACKED = ("mixtral", "gpt_oss", "llama4_text")


def found(family: str) -> tuple[NeuronCoupling, StockModel]:
    """The first coupling of neurons that is found in a family's layers by names and shapes, and the model."""
    stock = tiny_stock(family).shape.stock
    return next(neuron_couplings(stock.layers[0])), stock


def other_activation(gate: Tensor | None, up: Tensor) -> Tensor:
    return torch.tanh(up if gate is None else gate) * (1 if gate is None else up)


def exchanged(coupling: NeuronCoupling) -> NeuronCoupling:
    """The same with gate and up projection in each other's place."""
    others = {"gate": "up", "up": "gate", "gate_bias": "up_bias", "up_bias": "gate_bias"}
    return dataclasses.replace(coupling, slots={others.get(role, role): slot for role, slot in coupling.slots.items()})


@pytest.mark.parametrize("family", [*SEPARATE, *FUSED, *STACKED, "gpt2", "gpt_neox"])
def test_couplings_of_known_families_are_confirmed_as_they_are_found(family: str) -> None:
    coupling, stock = found(family)
    own = confirmed(coupling, stock, 0)
    assert own == coupling
    assert own is not None
    assert own.own is None


@pytest.mark.parametrize("family", [*FUSED, *STACKED, "gpt2", "opt"])
def test_another_activation_than_the_layers_is_refused(family: str) -> None:
    coupling, stock = found(family)
    assert confirmed(dataclasses.replace(coupling, activation=other_activation), stock, 0) is None


@pytest.mark.parametrize("family", STACKED)
def test_experts_with_gate_and_up_exchanged_are_refused(family: str) -> None:
    coupling, stock = found(family)
    assert exchanged(coupling) != coupling
    assert confirmed(exchanged(coupling), stock, 0) is None


@pytest.mark.parametrize("family", FUSED)
def test_a_fused_gate_and_up_projection_are_told_apart(family: str) -> None:
    coupling, stock = found(family)
    assert exchanged(coupling) != coupling
    assert confirmed(exchanged(coupling), stock, 0) == coupling


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("wrong", ["activation", "exchanged"])
def test_where_the_formula_is_wrong_the_module_itself_tells_what_its_neurons_are(family: str, wrong: str) -> None:
    coupling, stock = found(family)
    changed = exchanged(coupling)
    if wrong == "activation":
        changed = dataclasses.replace(coupling, activation=other_activation)
    own = confirmed(changed, stock, 0)
    assert own is not None
    assert own.own is not None
    weights, widths = tiny_stock(family).layer(0), tiny_stock(family).shape.layers[0]
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    mlp = coupling.view(weights, widths)
    gate = F.linear(x, mlp["gate"], mlp.get("gate_bias")) if "gate" in mlp else None
    expected = coupling.activation(gate, F.linear(x, mlp["up"], mlp.get("up_bias")))
    torch.testing.assert_close(own.own.neurons(x, own.view(weights, widths)), expected)


class Mixing(nn.Module):
    """An MLP whose neurons may depend on each other."""

    def __init__(self, *, mixing: bool) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(HIDDEN, 16), nn.Linear(16, HIDDEN)
        self.mixing = mixing

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.up_proj(x)
        after: Tensor = self.down_proj(up.softmax(-1) if self.mixing else F.silu(up))
        return after


def test_neurons_that_depend_on_each_other_are_refused() -> None:
    for mixing in (True, False):
        layer = nn.Module()
        layer.mlp = Mixing(mixing=mixing)
        (coupling,) = neuron_couplings(layer)
        stock: Any = SimpleNamespace(layers=[layer], hidden=HIDDEN)
        assert coupling.units == 16
        assert confirmed(coupling, stock, 0) == (None if mixing else coupling)


def heads_of(family: str) -> HeadCoupling:
    tiny = tiny_stock(family)
    heads = head_coupling(tiny.shape.stock.layers[0])
    assert heads is not None
    return heads


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "mixtral", "gpt_neox", "opt"])
def test_heads_of_known_families_are_confirmed(family: str) -> None:
    tiny = tiny_stock(family)
    widths = tiny.shape.layers[0]
    assert heads_agree(heads_of(family), tiny.shape.stock, 0, widths)
    if widths.grouped and widths.group_size > 1:  # the others' configs have no words for fewer heads
        assert tiny.shape.couplings(widths).heads == heads_of(family)


@pytest.mark.parametrize("family", ["olmo2", "olmoe"])
def test_heads_under_a_norm_of_their_full_width_are_kept(family: str) -> None:
    """They are found by names, but each feeds the outputs of all."""
    tiny = tiny_stock(family)
    widths = dataclasses.replace(tiny.shape.layers[0], heads=4, kv_heads=2)
    assert not heads_agree(heads_of(family), tiny.shape.stock, 0, widths)
    couplings = tiny.shape.couplings(tiny.shape.layers[0])
    assert couplings.heads is None
    assert couplings.neurons


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
def test_a_fused_projection_read_in_the_other_order_is_refused(family: str) -> None:
    tiny, heads = tiny_stock(family), heads_of(family)
    assert SimpleNamespace(**heads.slots).q.rows.by_group == (family == "gpt_neox")
    slots = {}
    for role, slot in heads.slots.items():
        rows = slot.rows
        if isinstance(rows, QueryKeyValue):
            rows = dataclasses.replace(rows, by_group=not rows.by_group)
        slots[role] = dataclasses.replace(slot, rows=rows)
    wrong = dataclasses.replace(heads, slots=slots)
    assert not heads_agree(wrong, tiny.shape.stock, 0, tiny.shape.layers[0])
