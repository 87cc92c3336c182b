"""Layers in pieces: each tensor is in one of them, and they are read and written as parts of the whole."""

import pytest
import torch
from stock_models import tiny_stock
from torch import Tensor

from llmfold.models import pieces
from llmfold.models.pieces import Piece

EXPERTS = 3
FAMILIES = ("mixtral", "olmoe", "gpt_oss", "llama4_text")


@pytest.fixture(params=[1, 2, EXPERTS])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Experts of a tiny model that are taken at once."""
    number: int = request.param
    monkeypatch.setattr(pieces, "GROUP_PARAMETERS", number * (3 * 32 * 48 + 2 * 48 + 32))
    return number


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_come_in_groups_and_all_else_once(family: str, together: int) -> None:
    shape = tiny_stock(family).shape
    found = shape.pieces(1)
    groups = [piece.experts for piece in found if piece.experts is not None]
    assert [n for group in groups for n in group] == list(range(EXPERTS))
    assert max(map(len, groups)) == together
    (rest,) = (piece for piece in found if piece.experts is None)
    layer = shape.layers[1]
    stacked = {role for role, _ in shape.of_piece(found[0]).layer_roles(layer)}
    alone = {role for role, _ in shape.of_piece(rest).layer_roles(layer)}
    assert stacked & alone == set()
    assert stacked | alone == {role for role, _ in shape.layer_roles(layer)}


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_read_and_written_as_parts_of_the_whole(family: str, together: int) -> None:
    tiny = tiny_stock(family)
    shape, whole = tiny.shape, tiny.layer(1)
    files = shape.pack(1, whole)
    written: dict[str, list[Tensor]] = {}
    for piece in shape.pieces(1):
        own = shape.unpack_piece(piece, lambda name, part: files[name][part.start : part.stop] if part else files[name])
        for role, tensor in own.items():
            expected = whole[role] if piece.experts is None else whole[role][piece.experts.start : piece.experts.stop]
            assert torch.equal(tensor, expected)
        for name, tensor in shape.pack_piece(piece, own).items():
            written.setdefault(name, []).append(tensor)
    assert written.keys() == files.keys()
    assert all(torch.equal(torch.cat(parts), files[name]) for name, parts in written.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_couplings_of_a_piece_see_what_those_of_the_layer_see(family: str, together: int) -> None:
    tiny = tiny_stock(family)
    shape, whole, layer = tiny.shape, tiny.layer(1), tiny.shape.layers[1]
    views = {each.name: each.view(whole, layer) for each in shape.couplings(layer).neurons}
    seen = {}
    for piece in shape.pieces(1):
        roles = dict(shape.of_piece(piece).layer_roles(layer))
        part = piece.experts or range(0)
        own = {role: whole[role][part.start : part.stop] if part else whole[role] for role in roles}
        assert {role: tuple(tensor.shape) for role, tensor in own.items()} == roles
        couplings = shape.of_piece(piece).couplings(layer)
        assert couplings.heads == (shape.couplings(layer).heads if piece.experts is None else None)
        seen |= {each.name: each.view(own, layer) for each in couplings.neurons}
    assert seen.keys() == views.keys()
    for name, view in views.items():
        assert all(torch.equal(seen[name][role], tensor) for role, tensor in view.items())


@pytest.mark.parametrize("family", ["phi3", "gemma2"])
def test_a_layer_without_experts_is_one_piece(family: str) -> None:
    shape = tiny_stock(family).shape
    assert shape.pieces(1) == [Piece(1)]
    assert shape.apart(1) == (0, shape.layer_parameters(shape.layers[1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_in_memory_does_not_grow_with_the_experts(family: str, together: int) -> None:
    shape = tiny_stock(family).shape
    group, rest = shape.apart(1)
    whole = shape.layer_parameters(shape.layers[1])
    assert whole == rest + group * EXPERTS // together if EXPERTS % together == 0 else whole > rest + group
