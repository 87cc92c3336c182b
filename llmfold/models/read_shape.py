"""Reading a model's shape off its stock class: what its layers are made of, and what of it can be folded."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig

from llmfold.errors import CheckpointError
from llmfold.models.base import LAYERS, Architecture, LayerShape, ModelShape, Role
from llmfold.models.coupling import HeadCoupling, LayerCouplings, NeuronCoupling, main_units
from llmfold.models.finder import head_coupling, neuron_couplings, tensors_of
from llmfold.models.probe import confirmed, heads_agree
from llmfold.models.settings import POSITIONS, setting, text_config
from llmfold.models.skeleton import build_stock
from llmfold.models.stock import StockModel
from llmfold.models.stock_shape import Kind, StockShape
from llmfold.models.width_keys import find_keys


def stock_shape(config: PretrainedConfig) -> StockShape:
    """Read a model's shape off its stock class, and find where its config holds widths.

    Raises:
        CheckpointError: the family is not one that llmfold can fold, with the reason.
    """
    if getattr(config, "is_encoder_decoder", False) or _is_encoder(config):
        raise CheckpointError(
            f"model_type {config.model_type!r} in config.json is an encoder, or an encoder with a decoder: "
            "llmfold folds decoders"
        )
    shape = _read(config)
    shape.stock.refuse_dependence()
    shape = find_keys(shape, config)
    _refuse_unfoldable(shape)
    return shape


def registered_shape(config: PretrainedConfig, told: ModelShape) -> StockShape:
    """The shape of a model of a registered family with its stock model.

    Args:
        config: of transformers; layers may be narrower than it says.
        told: what is known by the family's entry and the raw config, which says where widths are held.

    Raises:
        CheckpointError: the stock class has not what the family's entry says.
    """
    shape = _read(config)
    layers = tuple(dataclasses.replace(a, kind=b.kind) for a, b in zip(told.layers, shape.layers, strict=True))
    shape = dataclasses.replace(shape, **{**_facts(told), "layers": layers})
    roles = (dict(shape.layer_roles(layer)) == dict(told.layer_roles(layer)) for layer in set(layers))
    if not shape.is_plain or shape.stock.path != LAYERS or not all(roles):
        raise CheckpointError(
            f"{type(shape.stock.model).__name__} does not work as the entry of {told.architecture.model_type!r} says: "
            "register the family as it is, or leave it to what its class tells"
        )
    return shape


def with_biases(shape: StockShape) -> StockShape:
    """The shape with a bias on every projection, of a registered family whose config has keys for all of them."""
    family, config = shape.architecture, copy.deepcopy(shape.stock.model.config)
    told = ModelShape(**{**_facts(shape), "qkv_bias": True, "o_bias": True, "mlp_bias": True})
    for key in (family.qkv_bias, family.o_bias, family.mlp_bias):
        setattr(config, str(key), True)
    return registered_shape(config, told)


def _facts(shape: ModelShape) -> dict[str, Any]:
    """What any shape says, by field."""
    return {field.name: getattr(shape, field.name) for field in dataclasses.fields(ModelShape)}


def _read(config: PretrainedConfig) -> StockShape:
    """What the stock class of a config tells, but for the keys that hold its widths."""
    model = build_stock(config)
    stock = StockModel(model)
    found: list[Kind] = []
    kinds: list[Kind] = []
    layers = []
    for index, layer in enumerate(stock.layers):
        kind = _kind(layer)
        same = next((i for i, other in enumerate(found) if _alike(kind, other)), len(found))
        if same == len(found):
            found.append(kind)
            kinds.append(_confirmed(kind, stock, index))
        kind = kinds[same]
        layers.append(dataclasses.replace(kind.full, kind=same))
    kinds = [dataclasses.replace(each, full=dataclasses.replace(each.full, kind=i)) for i, each in enumerate(kinds)]
    text = text_config(config)
    name = type(model).__name__
    heads = next((kind.couplings.heads for kind in kinds if kind.couplings.heads), None)
    return StockShape(
        architecture=Architecture(str(config.model_type), name.removesuffix("ForCausalLM"), class_name=name),
        hidden=stock.hidden,
        head_dim=heads.head_dim if heads else int(setting(text, "head_dim") or 1),
        vocabulary=int(stock.parameters[f"{stock.embedding_path}.weight"][0]),
        layers=tuple(layers),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        positions=int(setting(text, "max_position_embeddings") or POSITIONS),
        kinds=tuple(kinds),
        stock=stock,
    )


def _refuse_unfoldable(shape: StockShape) -> None:
    """Raise CheckpointError where no layer has anything to fold, with the reason that most of them share."""
    if any(kind.couplings.neurons or kind.couplings.heads for kind in shape.kinds):
        return
    reasons = [reason for kind in shape.kinds for reason in kind.couplings.kept]
    reason = reasons[0] if reasons else "its layers hold no MLP or attention that is understood"
    raise CheckpointError(
        f"llmfold finds nothing to fold in {shape.architecture.causal_lm} (model_type "
        f"{shape.architecture.model_type!r} in config.json): {reason}"
    )


def _is_encoder(config: PretrainedConfig) -> bool:
    """Whether a model reads text in both directions, unless its config says that it shall be a decoder."""
    return getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention")


def _kind(layer: torch.nn.Module) -> Kind:
    neurons, heads = tuple(neuron_couplings(layer)), head_coupling(layer)
    tensors = tensors_of(layer)
    widths = LayerShape(main_units(neurons), 0, 0)
    if heads is not None:
        queries = tensors[heads.slots["o"].tensor][heads.slots["o"].axis] // heads.head_dim
        keys = _kv_heads(heads, tensors, queries)
        widths = dataclasses.replace(widths, heads=queries, kv_heads=keys)
        if queries % max(keys, 1):
            heads, widths = None, dataclasses.replace(widths, heads=0, kv_heads=0)
    kind = Kind(widths, tensors, LayerCouplings(neurons, heads))
    if heads is not None and dict(kind.narrowed(widths)) != tensors:  # more lies in its projections than heads
        kind = Kind(widths, tensors, LayerCouplings(neurons, None))
    return kind


def _confirmed(kind: Kind, stock: StockModel, index: int) -> Kind:
    """The kind with those couplings that the probe confirms on a layer of it."""
    couplings, kept = kind.couplings, list(kind.couplings.kept)
    neurons: list[NeuronCoupling] = []
    for coupling in couplings.neurons:
        if coupling.expert:  # the first of a stack stands for all
            neurons += [coupling] if neurons and neurons[-1].reads == coupling.reads else []
            continue
        own = confirmed(coupling, stock, index)
        if own is None:
            kept.append(f"{coupling.name} computes something else than its projections suggest")
        neurons += [own] if own else []
    heads = couplings.heads
    if heads is not None and not heads_agree(heads, stock, index, kind.full):
        heads = None
    full = dataclasses.replace(kind.full, intermediate=main_units(neurons))
    return dataclasses.replace(kind, full=full, couplings=LayerCouplings(tuple(neurons), heads, tuple(kept)))


def _kv_heads(heads: HeadCoupling, tensors: Mapping[Role, tuple[int, ...]], queries: int) -> int:
    slot = heads.slots["k"]
    rows = tensors[slot.tensor][slot.axis]
    if slot.tensor == heads.slots["q"].tensor:  # fused: queries, keys and values
        rows = (rows - queries * heads.head_dim) // 2
    return rows // heads.head_dim


def _alike(one: Kind, other: Kind) -> bool:
    return one.tensors == other.tensors and one.couplings == other.couplings
