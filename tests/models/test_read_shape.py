"""Shapes of registered families: what their entries say is what their stock classes are."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from folding.builders import VARIANTS, hidden_states, layer_weights, raw_config, relative, state_of, stock_model
from reference_forward import decoder_layer, reference
from shapes import shape_with_stock
from stock_models import tiny_config

from llmfold.errors import CheckpointError
from llmfold.models import Architecture, LayerShape, ModelShape, shape_of
from llmfold.models.context import Context
from llmfold.models.read_shape import registered_shape, with_biases


def narrower(shape: ModelShape) -> list[LayerShape]:
    layer = shape.layers[0]
    return [
        layer,
        *(layer.with_units(n, units) for n in (1, layer.intermediate // 2) for units in (1, layer.head_units)),
    ]


@pytest.mark.parametrize("case", VARIANTS)
def test_what_is_told_without_transformers_is_what_the_stock_class_tells(case: str) -> None:
    family, fields = VARIANTS[case]
    raw = raw_config(family, **fields)
    told, stock = shape_of(raw), shape_with_stock(raw)
    assert (told.parameters, told.biased, told.grain) == (stock.parameters, stock.biased, stock.grain)
    assert told.layers == stock.layers
    for index, layer in enumerate(narrower(told)):
        assert told.stored_shapes(0, layer) == stock.stored_shapes(0, layer), index
        assert told.layer_parameters(layer) == stock.layer_parameters(layer)
        assert told.neuron_cost(layer) == stock.neuron_cost(layer)
        assert (told.folds_heads(layer), told.mlps(layer)) == (stock.folds_heads(layer), stock.mlps(layer))


@pytest.mark.parametrize("case", ["llama", "llama-mqa", "qwen3-mqa"])
def test_layers_run_at_widths_that_are_not_those_of_the_stock_model(case: str) -> None:
    family, fields = VARIANTS[case]
    raw = raw_config(family, **fields)
    shape = shape_with_stock(raw)
    before = shape.layers[0]
    after = before.with_units(before.intermediate // 2, before.head_units // 2)
    small = raw_config(
        family,
        **{**fields, "intermediate_size": after.intermediate, "num_attention_heads": after.heads},
        **({} if before.kv_heads == 1 else {"num_key_value_heads": after.kv_heads}),
    )
    weights = layer_weights(state_of(stock_model(small, dtype=torch.float64)), shape_of(small), 0)
    x = hidden_states(shape)
    expected = decoder_layer(x, weights, after, reference(small, shape_of(small)), 0)
    as_told = Context(shape).layer(x, weights, 0, after)
    of_shape = Context(replace(shape, layers=(after, *shape.layers[1:]))).layer(x, weights, 0)
    assert relative(as_told, expected) < 1e-6
    assert torch.equal(as_told, of_shape)


def test_biases_are_added_where_the_config_has_keys_for_them() -> None:
    raw, biased = raw_config("llama"), raw_config("llama", attention_bias=True, mlp_bias=True)
    found, expected = with_biases(shape_with_stock(raw)), shape_with_stock(biased)
    assert found.layer_stored() == expected.layer_stored()
    assert found.parameters == expected.parameters


def test_a_family_that_does_not_work_as_its_entry_says_is_refused() -> None:
    config = tiny_config("gemma2")
    told = replace(shape_of(raw_config("llama")), architecture=Architecture("gemma2", "Gemma2"))
    with pytest.raises(CheckpointError, match="does not work as the entry of 'gemma2' says"):
        registered_shape(config, told)


def test_layers_of_a_config_with_widths_of_their_own_are_of_those_widths() -> None:
    overrides: dict[str, dict[str, Any]] = {"1": {"intermediate_size": 24}}
    shape = shape_with_stock({**raw_config("llama"), "per_layer_config": overrides})
    assert [layer.intermediate for layer in shape.layers] == [40, 24]
    assert shape.stored_shapes(1, shape.layers[1])["model.layers.1.mlp.down_proj.weight"] == (32, 24)
