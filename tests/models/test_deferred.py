"""Stacks of experts that are read when they are needed: what they give, what they read, and when."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stock_models import some_tokens, tiny_stock
from torch import Tensor

from llmfold.models.deferred import Deferred, Experts, at_hand

COUNT = 5


@pytest.fixture
def experts() -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """Stacks in memory, the same deferred, and the numbers of the experts that were read."""
    generator = torch.Generator().manual_seed(0)
    real = {
        "w": torch.randn(COUNT, 6, 4, generator=generator).bfloat16(),
        "b": torch.randn(COUNT, 6, generator=generator).bfloat16(),
    }
    seen: list[int] = []

    def read(number: int) -> dict[str, Tensor]:
        seen.append(number)
        return {role: tensor[number].clone() for role, tensor in real.items()}

    stacks = Experts(read).stacks({role: tuple(tensor.shape) for role, tensor in real.items()})
    seen.clear()
    return real, stacks, seen


def test_nothing_is_read_before_a_number_is_needed(experts: Any) -> None:
    real, stacks, seen = experts
    wide = {role: tensor.to("cpu", torch.float32) for role, tensor in stacks.items()}
    picked = wide["w"][torch.tensor(3)][:4].T
    assert seen == []
    assert (picked.shape, picked.dtype, picked.device.type) == ((4, 4), torch.float32, "cpu")
    assert (stacks["w"].shape, stacks["w"].dtype) == (real["w"].shape, torch.bfloat16)
    assert torch.equal(at_hand(picked), real["w"][3].float()[:4].T)
    assert seen == [3]


def test_the_matrices_of_an_expert_are_read_together(experts: Any) -> None:
    real, stacks, seen = experts
    for number in (4, 2):
        x = torch.ones(2, 4)
        given = F.linear(x, stacks["w"].float()[number], stacks["b"].float()[number])
        assert torch.equal(given, F.linear(x, real["w"][number].float(), real["b"][number].float()))
    assert seen == [4, 2]


def test_gradients_read_an_expert_again_and_are_the_same(experts: Any) -> None:
    real, stacks, seen = experts
    wide, x = stacks["w"].float(), torch.randn(3, 4)
    gradients = []
    for weight in (wide, real["w"].float()):
        leaf = x.clone().requires_grad_()
        y = F.linear(F.linear(leaf, weight[1]).sin(), weight[2].T).square().sum()
        gradients.append(torch.autograd.grad(y, leaf)[0])
    assert torch.equal(*gradients)
    assert seen == [1, 2, 1]  # back from the second, which is still at hand


def test_other_operations_read_all(experts: Any) -> None:
    real, stacks, seen = experts
    assert torch.equal(stacks["w"] * 2, real["w"] * 2)
    assert torch.equal(torch.cat([stacks["b"], stacks["b"]]), torch.cat([real["b"], real["b"]]))
    assert torch.equal(
        torch.bmm(torch.ones(COUNT, 2, 6), stacks["w"].float()), torch.ones(COUNT, 2, 6) @ real["w"].float()
    )
    assert set(seen) == set(range(COUNT))


def test_what_is_read_cannot_be_written(experts: Any) -> None:
    _, stacks, _ = experts
    with pytest.raises(TypeError, match="read when it is needed"):
        stacks["w"][2].copy_(torch.zeros(6, 4))
    with pytest.raises(TypeError, match="read when it is needed"):
        stacks["b"].mul_(2)


def test_what_is_at_hand_holds_nothing_beside(experts: Any) -> None:
    real, stacks, _ = experts
    rows = at_hand(stacks["w"][1][2:3])
    assert torch.equal(rows, real["w"][1][2:3])
    assert rows.untyped_storage().nbytes() == rows.numel() * rows.element_size()
    assert at_hand(real["w"]) is real["w"]


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss", "llama4_text"])
def test_a_layer_computes_the_same_with_its_experts_on_disk(family: str) -> None:
    tiny = tiny_stock(family)
    files = tiny.shape.pack(1, tiny.layer(1))

    def read(name: str, part: range | None = None) -> Tensor:
        return files[name] if part is None else files[name][part.start : part.stop]

    deferred, whole = tiny.shape.unpack_deferred(1, read), tiny.layer(1)
    assert any(isinstance(tensor, Deferred) for tensor in deferred.values())
    assert {role: (t.shape, t.dtype) for role, t in deferred.items()} == {
        role: (t.shape, t.dtype) for role, t in whole.items()
    }
    x = tiny.shape.stock.embed(tiny.outside, some_tokens(3, 7))
    results = []
    for weights in (deferred, whole):
        leaf = x.detach().clone().requires_grad_()
        after = tiny.shape.stock.layer(1, {role: tensor.detach() for role, tensor in weights.items()}, leaf)
        results.append((after.detach(), *torch.autograd.grad(after.square().sum(), leaf)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_layer_without_experts_is_read_at_once() -> None:
    tiny = tiny_stock("phi3")
    files = tiny.shape.pack(1, tiny.layer(1))
    read = tiny.shape.unpack_deferred(1, lambda name, part: files[name])
    assert not any(isinstance(tensor, Deferred) for tensor in read.values())
    assert all(torch.equal(read[role], tensor) for role, tensor in tiny.layer(1).items())
