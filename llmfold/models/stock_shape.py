"""Shapes of models of any family, read off the stock model."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from llmfold.errors import CheckpointError
from llmfold.models import refusals
from llmfold.models.base import Architecture, LayerShape, ModelShape, Role, role_of, tensor_path
from llmfold.models.coupling import HeadCoupling, LayerCouplings, NeuronCoupling, main_units
from llmfold.models.finder import head_coupling, neuron_couplings, tensors_of
from llmfold.models.layout import Layout, default_names
from llmfold.models.probe import confirmed, heads_agree
from llmfold.models.settings import POSITIONS, setting, text_config
from llmfold.models.skeleton import build_stock
from llmfold.models.stock import StockModel
from llmfold.models.width_keys import WidthKeys, find_keys, group_of

_EXPERT_GRAIN = 8


@dataclass(frozen=True)
class Kind:
    """What layers of one kind have in common.

    Attributes:
        full: their widths in the stock model.
        tensors: shapes of their tensors by role, at these widths.
        couplings: what can be folded of them.
    """

    full: LayerShape
    tensors: Mapping[Role, tuple[int, ...]]
    couplings: LayerCouplings

    def units(self, coupling: NeuronCoupling, widths: LayerShape) -> int:
        """Neurons of a coupling in a layer as wide as ``widths``: all couplings lose the same fraction."""
        return round(coupling.units * widths.intermediate / self.full.intermediate)

    def narrowed(self, widths: LayerShape) -> Iterator[tuple[Role, tuple[int, ...]]]:
        """Role and shape of every tensor of a layer as wide as ``widths``."""
        shapes = {role: list(size) for role, size in self.tensors.items()}
        sizes: dict[Role, tuple[int, int]] = {}
        for coupling in self.couplings.neurons:
            if coupling.expert not in (None, 0):
                continue  # all experts of a stack are of one width, and lie in one tensor
            for slot in coupling.slots.values():
                if slot.of_units:
                    axis, size = sizes.get(slot.tensor, (slot.unit_axis(), 0))
                    sizes[slot.tensor] = (axis, size + self.units(coupling, widths))
        if self.couplings.heads is not None:
            of_role = _head_rows(self.couplings.heads, widths)
            for role, slot in self.couplings.heads.slots.items():
                if slot.of_units:
                    axis, size = sizes.get(slot.tensor, (slot.unit_axis(), 0))
                    sizes[slot.tensor] = (axis, size + of_role[role[0]])
        for tensor, (axis, size) in sizes.items():
            shapes[tensor][axis] = size
        return ((role, tuple(size)) for role, size in shapes.items())

    def parameters(self, widths: LayerShape) -> int:
        """Parameters of a layer as wide as ``widths``."""
        return sum(math.prod(size) for _, size in self.narrowed(widths))


def _head_rows(heads: HeadCoupling, widths: LayerShape) -> dict[str, int]:
    queries, keys = widths.heads * heads.head_dim, widths.kv_heads * heads.head_dim
    return {"q": queries, "k": keys, "v": keys, "o": queries}


@dataclass(frozen=True)
class StockShape(ModelShape):
    """The shape of a model whose family is not described in llmfold: the stock model tells it.

    Attributes:
        kinds: of layers; the ``kind`` of a layer's widths is a number in this.
        stock: the model.
        layout: how stored tensors become its parameters.
        keys: where its config holds widths.
    """

    kinds: tuple[Kind, ...] = ()
    stock: StockModel = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    layout: Layout = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    keys: WidthKeys = field(default=None, compare=False, repr=False)  # type: ignore[assignment]

    def couplings(self, layer: LayerShape) -> LayerCouplings:
        """What can be folded of a layer."""
        return self.kinds[layer.kind].couplings

    def units(self, coupling: NeuronCoupling, layer: LayerShape) -> int:
        """Neurons of a coupling in a layer as wide as ``layer``."""
        return self.kinds[layer.kind].units(coupling, layer)

    def layer_roles(self, layer: LayerShape) -> Iterator[tuple[Role, tuple[int, ...]]]:
        """Yield role and shape of every tensor of a decoder layer of widths ``layer``, in module order."""
        return self.kinds[layer.kind].narrowed(layer)

    def layer_paths(self, layer: LayerShape) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name in the layer and shape of every tensor of a layer of widths ``layer``."""
        return ((tensor_path(role), size) for role, size in self.layer_roles(layer))

    def layer_parameters(self, layer: LayerShape) -> int:
        """Parameters of one decoder layer of widths ``layer``."""
        return self.kinds[layer.kind].parameters(layer)

    @property
    def inferred(self) -> str:
        """What was found to fold, and what is kept, in words."""
        folded: dict[str, None] = {}
        kept: dict[str, None] = {}
        for kind in self.kinds:
            for coupling in kind.couplings.neurons:
                folded[f"neurons of {group_of(coupling.name)}"] = None
            if kind.couplings.heads is not None:
                folded[f"heads of {kind.couplings.heads.consumer}"] = None
            kept |= dict.fromkeys(kind.couplings.kept)
        if not any(kind.couplings.heads for kind in self.kinds):
            kept["attention and other mixers"] = None
        words = f"{', '.join(folded)}; found in the stock class, and confirmed by the probe"
        return f"{words} (kept: {', '.join(kept)})" if kept else words

    @property
    def grain(self) -> int:
        """Grouped products of experts want rows of whole 16 bytes, in half precision too."""
        experts = any(each.expert is not None for kind in self.kinds for each in kind.couplings.neurons)
        return _EXPERT_GRAIN if experts else 1

    def neuron_cost(self, layer: LayerShape) -> int:
        """Parameters that go with one neuron of a layer's width."""
        kind = self.kinds[layer.kind]
        if not kind.full.intermediate:
            return 0
        one_less = dataclasses.replace(kind.full, intermediate=0)
        return round((kind.parameters(kind.full) - kind.parameters(one_less)) / kind.full.intermediate)

    @property
    def outside_parameters(self) -> int:
        """Parameters outside the decoder layers; a tied head once."""
        head = f"{self.stock.head_path}.weight"
        sizes = {
            name: math.prod(size) for name, size in self.stock.parameters.items() if not self.stock.is_inside(name)
        }
        return sum(size for name, size in sizes.items() if not (self.tied and name == head))

    def layer_tensors(self, index: int) -> dict[Role, str]:
        """Names of the stored tensors of a layer, by themselves."""
        return {name: name for group in self._groups(index) for name, _ in group.stored}

    def _groups(self, index: int) -> list[Any]:
        start = f"{self.stock.path}.{index}."
        return [group for group in self.layout.groups if group.target.startswith(start)]

    def unpack(self, index: int, stored: Mapping[str, Tensor]) -> dict[Role, Tensor]:
        """A layer's tensors by role, from those stored by name."""
        start = len(f"{self.stock.path}.{index}.")
        made = self.layout.load(self._groups(index), stored.__getitem__)
        return {role_of(name[start:]): tensor for name, tensor in made.items()}

    def pack(self, index: int, weights: Mapping[Role, Tensor]) -> dict[str, Tensor]:
        """A layer's tensors by the names they are stored under, from those by role."""
        start = f"{self.stock.path}.{index}."
        named = {start + tensor_path(role): tensor for role, tensor in weights.items()}
        return self.layout.store(self._groups(index), named)

    def stored_shapes(self, index: int, layer: LayerShape) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's stored tensors at widths ``layer``."""
        meta = {role: torch.empty(size, device="meta") for role, size in self.layer_roles(layer)}
        return {name: tuple(tensor.shape) for name, tensor in self.pack(index, meta).items()}

    def stored_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all stored tensors."""
        return {
            name: size
            for index, layer in enumerate(self.layers)
            for name, size in self.stored_shapes(index, layer).items()
        } | {
            name: tuple(tensor.shape)
            for name, tensor in self.layout.store(self._outside_groups(), self._meta()).items()
        }

    def _outside_groups(self) -> list[Any]:
        return [group for group in self.layout.groups if not self.stock.is_inside(group.target)]

    def _meta(self) -> dict[str, Tensor]:
        return {name: torch.empty(size, device="meta") for name, size in self.stock.parameters.items()}

    def check_stored(self, stored: Mapping[str, tuple[int, ...]]) -> None:
        """See :meth:`of_stored`."""
        self.of_stored(stored)

    def of_stored(self, stored: Mapping[str, tuple[int, ...]]) -> "StockShape":
        """The same for a checkpoint that stores tensors of these names and shapes.

        Raises:
            CheckpointError: a tensor is missing, of the wrong shape, or unknown.
        """
        layout = Layout(self.stock.model, self.stock.parameters, stored)
        ends = {f"{path}.weight" for path in (self.stock.head_path, self.stock.embedding_path)}
        missing = layout.missing(self.stock.parameters)
        if self.tied and not ends <= set(missing):
            missing = [name for name in missing if name not in ends]
        if missing:
            raise refusals.missing(missing[0])
        return dataclasses.replace(self, layout=layout)

    def end_names(self) -> list[str]:
        """Stored names of the embedding and of the head, of those that are stored."""
        ends = {f"{path}.weight" for path in (self.stock.embedding_path, self.stock.head_path)}
        return [name for group in self.layout.groups if group.target in ends for name, _ in group.stored]

    def outside(self, read: Any) -> dict[str, Tensor]:
        """Parameters outside the layers by name; ``read`` gives a stored tensor. A tied head is there twice."""
        made = self.layout.load(self._outside_groups(), read)
        head, embedding = f"{self.stock.head_path}.weight", f"{self.stock.embedding_path}.weight"
        if self.tied:
            made.setdefault(head, made.get(embedding, made.get(head)))  # type: ignore[arg-type]
            made.setdefault(embedding, made[head])
        return made


def stock_shape(config: PretrainedConfig) -> StockShape:
    """Read a model's shape off its stock class.

    Raises:
        CheckpointError: the family is not one that llmfold can fold, with the reason.
    """
    if getattr(config, "is_encoder_decoder", False) or _is_encoder(config):
        raise CheckpointError(
            f"model_type {config.model_type!r} in config.json is an encoder, or an encoder with a decoder: "
            "llmfold folds decoders"
        )
    model = build_stock(config)
    names = default_names(model, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    stock = StockModel(model)
    found: list[Kind] = []
    kinds: list[Kind] = []
    layers = []
    for index, layer in enumerate(stock.layers):
        kind = _kind(layer, config)
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
    shape = StockShape(
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
    shape = dataclasses.replace(shape, layout=Layout(stock.model, stock.parameters, names))
    stock.refuse_dependence()
    shape = find_keys(shape, config)
    _refuse_unfoldable(shape)
    return shape


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


def _kind(layer: torch.nn.Module, config: PretrainedConfig) -> Kind:
    neurons, heads = tuple(neuron_couplings(layer)), head_coupling(layer, config)
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
