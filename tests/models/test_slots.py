"""Parts of tensors: what is read is where the layout says, and what is written comes back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold.models import LayerShape
from llmfold.models.slots import Block, Interleaved, QueryKeyValue, Slot, narrowed

DIM = 3
WIDTHS = LayerShape(6, 4, 2)
Case = tuple[Slot, tuple[int, ...], Callable[[Tensor], Tensor]]


def by_group(part: slice) -> Callable[[Tensor], Tensor]:
    """Rows of a fused projection whose KV groups hold two queries, a key and a value each."""
    return lambda t: t.view(2, 4, DIM, 5)[:, part].reshape(-1, 5)


def qkv(part: int, grouped: bool) -> Slot:
    return Slot("qkv", rows=QueryKeyValue(part, DIM, grouped))


CASES: dict[str, Case] = {
    "whole": (Slot("up"), (6, 4), lambda t: t),
    "whole consumer": (Slot("down", axis=1, consumer=True), (4, 6), lambda t: t),
    "whole bias": (Slot("up_bias", matrix=False), (6,), lambda t: t),
    "first block": (Slot("both", rows=Block(0, 2)), (12, 4), lambda t: t[:6]),
    "second block": (Slot("both", rows=Block(1, 2)), (12, 4), lambda t: t[6:]),
    "block of a bias": (Slot("both_bias", matrix=False, rows=Block(1, 2)), (12,), lambda t: t[6:]),
    "interleaved": (Slot("both", rows=Interleaved(1, 2)), (12, 4), lambda t: t[1::2]),
    "transposed": (Slot("c_fc", axis=1), (4, 6), lambda t: t.T),
    "transposed consumer": (Slot("c_proj", axis=0, consumer=True), (6, 4), lambda t: t.T),
    "transposed block": (Slot("c_attn", axis=1, rows=Block(1, 3)), (4, 18), lambda t: t[:, 6:12].T),
    "expert": (Slot("experts", expert=1, rows=Block(1, 2)), (3, 12, 4), lambda t: t[1, 6:]),
    "consumer of an expert": (Slot("experts", axis=1, consumer=True, expert=2), (3, 4, 6), lambda t: t[2]),
    "transposed expert": (Slot("e", axis=1, expert=2, rows=Interleaved(0, 2)), (3, 4, 12), lambda t: t[2, :, ::2].T),
    "transposed consumer of an expert": (Slot("e", consumer=True, expert=0), (3, 6, 4), lambda t: t[0].T),
    "bias of an expert": (Slot("b", matrix=False, expert=1, rows=Interleaved(1, 2)), (3, 12), lambda t: t[1, 1::2]),
    "queries": (qkv(0, False), (24, 5), lambda t: t[:12]),
    "keys": (qkv(1, False), (24, 5), lambda t: t[12:18]),
    "values": (qkv(2, False), (24, 5), lambda t: t[18:]),
    "queries by group": (qkv(0, True), (24, 5), by_group(slice(0, 2))),
    "keys by group": (qkv(1, True), (24, 5), by_group(slice(2, 3))),
    "values by group": (qkv(2, True), (24, 5), by_group(slice(3, 4))),
}


def counted(shape: tuple[int, ...]) -> Tensor:
    """A tensor whose entries all differ."""
    return torch.arange(1.0, torch.Size(shape).numel() + 1).view(shape)


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_where_the_layout_says(case: str) -> None:
    slot, shape, expected = CASES[case]
    tensor = counted(shape)
    assert torch.equal(slot.read(tensor, WIDTHS), expected(tensor))


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_comes_back_and_nothing_else_changes(case: str) -> None:
    slot, shape, _ = CASES[case]
    tensor = counted(shape)
    values = -slot.read(tensor, WIDTHS)
    expected = torch.where(torch.isin(tensor, -values), -tensor, tensor)
    slot.write(tensor, values, WIDTHS)
    assert torch.equal(slot.read(tensor, WIDTHS), values)
    assert torch.equal(tensor, expected)
    assert int((tensor < 0).sum()) == values.numel()


@pytest.mark.parametrize("grouped", [False, True])
def test_queries_keys_and_values_are_all_of_a_fused_projection(grouped: bool) -> None:
    tensor = counted((24, 5))
    parts = [qkv(part, grouped).read(tensor, WIDTHS) for part in range(3)]
    assert torch.cat(parts).flatten().sort().values.tolist() == tensor.flatten().tolist()


@pytest.mark.parametrize("grouped", [False, True])
def test_a_narrowed_projection_keeps_the_heads_that_stay(grouped: bool) -> None:
    """What the rest of the heads would read from the narrower tensor is what they read from the wide one."""
    wide, narrow = {"qkv": counted((24, 5)), "norm": counted((5,))}, LayerShape(6, 2, 1)
    slots = {role: qkv(part, grouped) for part, role in enumerate("qkv")}
    rows = {"q": slice(2 * DIM, None), "k": slice(DIM, None), "v": slice(DIM, None)}  # the second of two groups
    kept = {role: slot.read(wide["qkv"], WIDTHS)[rows[role]] for role, slot in slots.items()}
    found = narrowed(wide, [(slots, kept)], {"qkv": (12, 5), "norm": (5,)}, narrow)
    assert found["qkv"].shape == (12, 5)
    assert not found["qkv"].isnan().any()
    for role, slot in slots.items():
        assert torch.equal(slot.read(found["qkv"], narrow), kept[role])


FUSED = {"gate": Slot("both", rows=Block(0, 2)), "up": Slot("both", rows=Block(1, 2))}
MLP = {**FUSED, "down": Slot("down", axis=1, consumer=True)}


def test_narrowing_keeps_what_is_not_folded_and_leaves_the_wide_layer_alone() -> None:
    wide = {"both": counted((12, 4)), "down": counted((4, 6)), "norm": counted((4,))}
    before = {role: tensor.clone() for role, tensor in wide.items()}
    kept = [1, 4]
    folded = {role: slot.read(wide[slot.tensor], WIDTHS) for role, slot in MLP.items()}
    folded = {role: value[:, kept] if role == "down" else value[kept] for role, value in folded.items()}
    shapes = {"both": (4, 4), "down": (4, 2), "norm": (4,)}
    found = narrowed(wide, [(MLP, folded)], shapes, LayerShape(2, 4, 2))
    assert {role: tuple(tensor.shape) for role, tensor in found.items()} == shapes
    assert torch.equal(found["both"], wide["both"][[1, 4, 7, 10]])
    assert torch.equal(found["down"], wide["down"][:, kept])
    assert found["norm"] is wide["norm"]
    assert all(torch.equal(wide[role], before[role]) for role in wide)


def test_a_part_that_nothing_is_written_to_is_no_number() -> None:
    found = narrowed({"both": counted((12, 4))}, [(FUSED, {"gate": torch.ones(2, 4)})], {"both": (4, 4)}, WIDTHS)
    assert not found["both"][:2].isnan().any()
    assert found["both"][2:].isnan().all()


def test_experts_are_narrowed_together_and_biases_of_hidden_size_stay() -> None:
    wide = {"down": counted((2, 4, 6)), "bias": counted((2, 4))}
    parts = []
    for number in range(2):
        slots = {
            "down": Slot("down", axis=1, consumer=True, expert=number),
            "down_bias": Slot("bias", matrix=False, consumer=True, expert=number),
        }
        values = {"down": wide["down"][number][:, [0, number + 1]]}
        parts.append((slots, values | ({"down_bias": torch.zeros(4)} if number else {})))
    found = narrowed(wide, parts, {"down": (2, 4, 2), "bias": (2, 4)}, LayerShape(2, 4, 2))
    assert torch.equal(found["down"], torch.stack([wide["down"][0][:, [0, 1]], wide["down"][1][:, [0, 2]]]))
    assert torch.equal(found["bias"], torch.stack([wide["bias"][0], torch.zeros(4)]))
