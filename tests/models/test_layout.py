"""Names and layouts of checkpoints: as transformers writes them, and back."""

from pathlib import Path

import pytest
import torch
from stock_models import Tiny, tiny_stock
from support import SINGLE, tensors
from torch import Tensor
from transformers import CONFIG_MAPPING

from llmfold.errors import CheckpointError, UsageError
from llmfold.models import LayerShape
from llmfold.models.layout import Layout, default_names
from llmfold.models.skeleton import build_stock
from llmfold.models.slots import narrowed
from llmfold.models.stock import StockModel

FAMILIES = ("mixtral", "phi3")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return tiny_stock(request.param)


@pytest.fixture(scope="module")
def stored(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The tensors that transformers saves."""
    folder: Path = tmp_path_factory.mktemp("layout")
    tiny.model.save_pretrained(folder)
    assert (folder / SINGLE).exists()
    return tensors(folder)


def shapes(found: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_names_and_shapes_are_those_that_transformers_saves(tiny: Tiny, stored: dict[str, Tensor]) -> None:
    stock = tiny.shape.stock
    assert default_names(stock.model, stock.parameters) == shapes(stored)
    assert tiny.shape.stored_tensors() == shapes(stored)


def test_experts_are_stored_one_by_one_and_loaded_as_a_stack() -> None:
    """What makes the round trip more than a copy."""
    stock = tiny_stock("mixtral").shape.stock
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in default_names(stock.model, stock.parameters)
    assert stock.parameters["model.layers.0.mlp.experts.gate_up_proj"] == (3, 96, 32)


def test_loading_gives_the_models_parameters_and_storing_gives_the_files(tiny: Tiny, stored: dict[str, Tensor]) -> None:
    stock = tiny.shape.stock
    layout = Layout(stock.model, stock.parameters, shapes(stored))
    assert layout.missing(stock.parameters) == []
    loaded = layout.load(layout.groups, stored.__getitem__)
    same(loaded, tiny.tensors)
    same(layout.store(layout.groups, loaded), stored)


def test_layers_are_unpacked_and_packed_one_by_one(tiny: Tiny, stored: dict[str, Tensor]) -> None:
    packed: dict[str, Tensor] = {}
    for index in range(len(tiny.shape.layers)):
        own = tiny.shape.unpack(index, stored.__getitem__)
        same(own, tiny.layer(index))
        packed |= tiny.shape.pack(index, own)
    outside = tiny.shape.outside(stored.__getitem__)
    same(outside, tiny.outside)
    same(packed, {name: tensor for name, tensor in stored.items() if name not in outside})


def test_a_narrower_layer_is_stored_under_the_same_names(tiny: Tiny, stored: dict[str, Tensor]) -> None:
    full = tiny.shape.layers[1]
    narrow = LayerShape(40, full.heads, full.kv_heads, kind=full.kind)
    weights, parts = tiny.layer(1), []
    for coupling in tiny.shape.couplings(full).neurons:
        mlp = coupling.view(weights, full)
        parts.append((coupling.slots, {r: t[:, :40] if r == "down" else t[:40] for r, t in mlp.items()}))
    found = narrowed(weights, parts, dict(tiny.shape.layer_roles(narrow)), narrow)
    packed = tiny.shape.pack(1, found)
    wide = {name: stored[name] for name in tiny.shape.stored_names(1)}
    assert packed.keys() == wide.keys()
    assert shapes(packed) == tiny.shape.stored_shapes(1, narrow)
    changed = {name for name in packed if packed[name].shape != wide[name].shape}
    assert len(changed) == {"mixtral": 9, "phi3": 2}[tiny.config.model_type]
    assert not any(tensor.isnan().any() for tensor in packed.values())
    for name in changed:
        consumer = name.endswith(("w2.weight", "down_proj.weight"))
        if consumer:
            expected = wide[name][:, :40]
        elif tiny.config.model_type == "phi3":  # gate and up projection lie in one tensor
            expected = torch.cat([wide[name][:40], wide[name][48:88]])
        else:
            expected = wide[name][:40]
        assert torch.equal(packed[name], expected)


def test_tensors_that_do_not_fit_are_named(tiny: Tiny, stored: dict[str, Tensor]) -> None:
    stock, known = tiny.shape.stock, shapes(stored)
    with pytest.raises(CheckpointError, match=r"tensor model\.other\.weight is not part of"):
        Layout(stock.model, stock.parameters, {**known, "model.other.weight": (3,)})
    norm = "model.layers.1.input_layernorm.weight"
    with pytest.raises(CheckpointError, match=rf"tensor {norm} gives {norm} the shape \[31\] but .* implies \[32\]"):
        Layout(stock.model, stock.parameters, {**known, norm: (31,)})
    del known[norm]
    assert Layout(stock.model, stock.parameters, known).missing(stock.parameters) == [norm]
    with pytest.raises(CheckpointError, match=f"tensor {norm} is missing"):
        tiny.shape.of_stored(known)


@pytest.mark.parametrize("turned", [False, True])
def test_a_tensor_that_is_turned_by_its_shape_keeps_its_orientation_and_is_never_square(turned: bool) -> None:
    config = CONFIG_MAPPING["qwen3_vl_moe"]()
    small = {"hidden_size": 32, "moe_intermediate_size": 24, "num_experts": 3, "num_hidden_layers": 2}
    config.text_config.update({**small, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})
    stock = StockModel(build_stock(config))
    name = f"{stock.path}.0.mlp.experts.gate_up_proj"
    names = {key: tuple(size) for key, size in stock.parameters.items()}
    experts, rows, columns = names[name]
    assert (rows, columns) == (48, 32)
    stored = {**names, name: (experts, columns, rows)} if turned else names
    layout = Layout(stock.model, stock.parameters, stored)
    (group,) = (group for group in layout.groups if group.target == name)
    narrow = torch.randn(experts, 20, columns)
    (written,) = layout.store([group], {name: narrow}).values()
    assert torch.equal(written, narrow.transpose(1, 2) if turned else narrow)
    square = {name: torch.randn(experts, columns, columns)}
    if turned:
        with pytest.raises(UsageError, match="square at the planned widths"):
            layout.store([group], square)
    else:
        assert layout.store([group], square).keys() == {name}
