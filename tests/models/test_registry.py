import math
from typing import Any

import pytest
import torch
from folding.builders import BASE, FAMILIES, VARIANTS, raw_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmfold.errors import CheckpointError
from llmfold.models import (
    ARCHITECTURES,
    EMBEDDING,
    HEAD,
    ModelShape,
    architecture_of,
    shape_of,
    stock_config,
    tensor_name,
)

Q_OF_LAYER_1 = "model.layers.1.self_attn.q_proj.weight"


def stock_parameters(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stock model's parameters, tied ones once."""
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def shape_and_tensors(family: str = "llama", **fields: Any) -> tuple[ModelShape, dict[str, tuple[int, ...]]]:
    shape = shape_of(raw_config(family, **fields))
    return shape, shape.stored_tensors()


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_and_counts_are_those_of_the_stock_model(variant: str) -> None:
    family, fields = VARIANTS[variant]
    raw = raw_config(family, **fields)
    shape, stock = shape_of(raw), stock_parameters(raw)
    assert shape.stored_tensors() == stock
    total = sum(math.prod(size) for size in stock.values())
    assert shape.parameters == total
    in_layers = sum(math.prod(size) for name, size in stock.items() if name.startswith("model.layers."))
    assert shape.decoder_parameters == in_layers
    assert shape.outside_parameters == total - in_layers


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_neuron_and_one_group_fewer_is_what_the_stock_model_loses(variant: str) -> None:
    family, fields = VARIANTS[variant]
    raw = raw_config(family, **fields)
    shape = shape_of(raw)
    narrower = {**raw, "intermediate_size": raw["intermediate_size"] - 1}
    gone = sum(map(math.prod, stock_parameters(raw).values())) - sum(
        map(math.prod, stock_parameters(narrower).values())
    )
    assert shape.neuron_parameters * len(shape.layers) == gone


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}),
        ("llama", {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "head_dim": 128}),
        ("mistral", {"hidden_size": 5120, "num_attention_heads": 32, "head_dim": 128, "intermediate_size": 14336}),
        (
            "qwen2",
            {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": True},
        ),
        ("qwen3", {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}),
    ],
)
def test_defaults_of_sparse_configs_are_filled_in_as_transformers_does(family: str, fields: dict[str, Any]) -> None:
    raw = {"model_type": family, "num_hidden_layers": 2, **fields}
    assert shape_of(raw).stored_tensors() == stock_parameters(raw)


def test_llama_1_configs_name_neither_kv_heads_nor_head_dim() -> None:
    raw = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 20, "vocab_size": 9}
    shape = shape_of({**raw, "num_hidden_layers": 1, "num_key_value_heads": None, "head_dim": None})
    assert (shape.head_dim, shape.layers[0].kv_heads, shape.layers[0].group_size) == (8, 6, 1)


@pytest.mark.parametrize("model_type", ["gpt9", "Llama", ""])
def test_a_family_that_transformers_does_not_know_is_refused_with_the_remedy(model_type: str) -> None:
    raw = {**BASE, "model_type": model_type}
    assert architecture_of(raw) is None
    with pytest.raises(CheckpointError, match="not known to the transformers installed: install a newer one") as error:
        shape_of(raw)
    assert repr(model_type) in str(error.value)


@pytest.mark.parametrize("model_type", ["bert", "t5"])
def test_encoders_are_refused(model_type: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model_type '{model_type}' .* encoder.* llmfold folds decoders"):
        shape_of({"model_type": model_type})


def test_a_family_without_anything_to_fold_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"nothing to fold in MambaForCausalLM .*'mamba'"):
        shape_of({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64})


UNDESCRIBED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_inner": 40, "n_layer": 2, "n_head": 8, "vocab_size": 48, "n_positions": 64},
    "mixtral": {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("family", UNDESCRIBED)
def test_a_family_that_is_not_described_has_the_shape_of_its_stock_class(family: str) -> None:
    raw = {"model_type": family, **UNDESCRIBED[family]}
    assert architecture_of(raw) is None
    shape, stock = shape_of(raw), stock_parameters(raw)
    assert not shape.architecture.registered
    assert shape.parameters == sum(map(math.prod, stock.values()))
    assert (shape.hidden, shape.vocabulary, shape.positions, len(shape.layers)) == (32, 48, 64, 2)
    expected = raw.get("n_inner", raw.get("intermediate_size"))
    assert {layer.intermediate for layer in shape.layers} == {expected}
    assert {layer.heads for layer in shape.layers} == {raw.get("n_head", raw.get("num_attention_heads"))}
    tensors = shape.stored_tensors()
    shape.check_stored(tensors)
    gone = next(name for name in tensors if (".1." in name and "norm" in name) or "ln_1" in name)
    with pytest.raises(CheckpointError, match=f"tensor {gone} is missing from the checkpoint"):
        shape.check_stored({name: size for name, size in tensors.items() if name != gone})
    with pytest.raises(CheckpointError, match=r"tensor model\.other is not part of"):
        shape.check_stored({**tensors, "model.other": (3,)})


def test_a_config_without_model_type_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"names no model_type, .*: download it again"):
        architecture_of({})


@pytest.mark.parametrize("names", [["LlamaForSequenceClassification"], ["LlamaModel", "LlamaForTokenClassification"]])
def test_models_that_are_no_causal_language_models_are_refused(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match=f"{names[0]}.*not a causal language model"):
        architecture_of({"model_type": "llama", "architectures": names})
    assert architecture_of({"model_type": "llama", "architectures": None}) is ARCHITECTURES["llama"]
    assert architecture_of({"model_type": "llama", "architectures": ["MyForCausalLM"]}) is ARCHITECTURES["llama"]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_classes_exist_in_transformers(family: str) -> None:
    import transformers

    assert hasattr(transformers, ARCHITECTURES[family].causal_lm)


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"intermediate_size": -4}, "intermediate_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "8 query heads .* not a multiple of 3 KV heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not a valid llama config"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_configs_that_contradict_themselves_are_named(fields: dict[str, Any], culprit: str) -> None:
    with pytest.raises(CheckpointError, match=culprit) as error:
        shape_of({"model_type": "llama", **BASE, **fields})
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named() -> None:
    shape, tensors = shape_and_tensors()
    del tensors[Q_OF_LAYER_1]
    with pytest.raises(CheckpointError, match=f"tensor {Q_OF_LAYER_1} is missing"):
        shape.check_stored(tensors)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes() -> None:
    shape, tensors = shape_and_tensors()
    with pytest.raises(CheckpointError, match=rf"tensor {Q_OF_LAYER_1} has shape \[7, 32\] but .* \[64, 32\]"):
        shape.check_stored({**tensors, Q_OF_LAYER_1: (7, 32)})


@pytest.mark.parametrize(
    "name", ["model.layers.2.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias", "lm_head.bias"]
)
def test_an_unknown_tensor_is_named(name: str) -> None:
    shape, tensors = shape_and_tensors()
    shape.check_stored(tensors)
    with pytest.raises(CheckpointError, match=f"tensor {name} is not part of LlamaForCausalLM"):
        shape.check_stored({**tensors, name: (64,)})


def test_tied_embeddings_may_be_stored_under_either_name_or_both() -> None:
    shape, tensors = shape_and_tensors(tie_word_embeddings=True)
    size = tensors.pop(EMBEDDING)
    for stored in ({EMBEDDING: size}, {HEAD: size}, {EMBEDDING: size, HEAD: size}):
        found = {**tensors, **stored}
        shape.check_stored(found)
    with pytest.raises(CheckpointError, match=EMBEDDING):
        shape.check_stored(tensors)
    with pytest.raises(CheckpointError, match=HEAD):
        shape.check_stored({**tensors, EMBEDDING: size, HEAD: (size[0] + 1, size[1])})


def test_an_untied_head_is_counted_and_needed() -> None:
    shape, tensors = shape_and_tensors()
    assert sum(map(math.prod, tensors.values())) == shape.parameters
    del tensors[HEAD]
    with pytest.raises(CheckpointError, match=f"{HEAD} is not stored"):
        shape.check_stored(tensors)


@pytest.mark.parametrize("spelling", ["{}", "{:02d}"])
def test_widths_per_layer_are_honoured_however_transformers_pads_their_keys(spelling: str) -> None:
    raw = raw_config("llama", num_hidden_layers=12)
    raw["per_layer_config"] = {
        spelling.format(3): {"intermediate_size": 24},
        spelling.format(11): {"num_attention_heads": 4, "num_key_value_heads": 2},
    }
    shape = shape_of(raw)
    assert not shape.uniform
    assert shape.layers[3].intermediate == 24
    assert (shape.layers[11].heads, shape.layers[11].kv_heads) == (4, 2)
    assert len(set(shape.layers[:3] + shape.layers[4:11])) == 1
    tensors = shape.stored_tensors()
    assert tensors[tensor_name(3, "down")] == (32, 24)
    assert tensors[tensor_name(11, "o")] == (32, 32)
    assert shape.parameters == sum(map(math.prod, tensors.values()))


def test_widths_per_layer_survive_a_round_trip_through_transformers() -> None:
    raw = raw_config("llama", num_hidden_layers=11)
    raw["per_layer_config"] = {str(i): {"intermediate_size": 20 + i} for i in range(11)}
    again = CONFIG_MAPPING["llama"].from_dict(raw).to_dict()
    assert [layer.intermediate for layer in shape_of(again).layers] == list(range(20, 31))


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        ({"2": {"intermediate_size": 20}}, "layer 2"),
        ({"first": {"intermediate_size": 20}}, "first"),
        ({"0": {"head_dim": 4}}, "head_dim"),
        ({"0": {"num_attention_heads": 6}}, "layer 0: 6 query heads"),
        ({"0": {"intermediate_size": 0}}, "intermediate_size"),
        ({"0": 3}, "per_layer_config"),
        ([1, 2], "per_layer_config"),
    ],
)
def test_bad_widths_per_layer_are_refused(overrides: Any, culprit: str) -> None:
    with pytest.raises(CheckpointError, match=culprit):
        shape_of({**raw_config("llama"), "per_layer_config": overrides})


def test_stock_config_leaves_out_what_only_remote_code_reads() -> None:
    raw = {**raw_config("llama"), "per_layer_config": {"0": {"intermediate_size": 8}}, "auto_map": {"x": "y"}}
    stock = stock_config(raw)
    assert stock.intermediate_size == BASE["intermediate_size"]
    assert not hasattr(stock, "auto_map")


def test_sizes_that_the_stock_class_cannot_be_built_of_are_a_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        shape_of({"model_type": "gemma", "hidden_size": 32, "num_attention_heads": 0, "num_hidden_layers": 1})
