"""Shapes with the stock model that they were read off, at its widths or narrower."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from llmfold.models import refusals
from llmfold.models.base import LayerShape, ModelShape, Role, role_of, tensor_path
from llmfold.models.coupling import HeadCoupling, LayerCouplings, NeuronCoupling
from llmfold.models.deferred import Experts
from llmfold.models.layout import Group, Layout, ReadPart
from llmfold.models.pieces import Piece, in_groups
from llmfold.models.stock import StockModel
from llmfold.models.width_keys import WidthKeys, group_of

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
    _known: dict[LayerShape, dict[Role, tuple[int, ...]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def units(self, coupling: NeuronCoupling, widths: LayerShape) -> int:
        """Neurons of a coupling in a layer as wide as ``widths``: all couplings lose the same fraction."""
        return round(coupling.units * widths.intermediate / self.full.intermediate)

    def narrowed(self, widths: LayerShape) -> Mapping[Role, tuple[int, ...]]:
        """Shape of every tensor of a layer as wide as ``widths``, by role."""
        if widths not in self._known:
            self._known[widths] = self._narrowed(widths)
        return self._known[widths]

    def _narrowed(self, widths: LayerShape) -> dict[Role, tuple[int, ...]]:
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
        return {role: tuple(size) for role, size in shapes.items()}

    def of_piece(self, piece: Piece) -> "Kind":
        """What a piece of such a layer is made of."""
        return Kind(self.full, piece.tensors(self.tensors), piece.couplings(self.couplings))

    def parameters(self, widths: LayerShape) -> int:
        """Parameters of a layer as wide as ``widths``."""
        return sum(map(math.prod, self.narrowed(widths).values()))


def _head_rows(heads: HeadCoupling, widths: LayerShape) -> dict[str, int]:
    queries, keys = widths.heads * heads.head_dim, widths.kv_heads * heads.head_dim
    return {"q": queries, "k": keys, "v": keys, "o": queries}


@dataclass(frozen=True)
class StockShape(ModelShape):
    """A model's shape with the model: all that runs it, reads it or writes it asks this.

    Attributes:
        kinds: of layers; the ``kind`` of a layer's widths is a number in this.
        stock: the model.
        stored_layout: how a checkpoint's tensors become its parameters; None of no checkpoint.
        keys: where its config holds widths.
    """

    kinds: tuple[Kind, ...] = ()
    stock: StockModel = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    stored_layout: Layout | None = field(default=None, compare=False, repr=False)
    keys: WidthKeys = field(default=None, compare=False, repr=False)  # type: ignore[assignment]

    @property
    def layout(self) -> Layout:
        """How stored tensors become parameters, by default those that transformers writes."""
        return self.stored_layout or self.stock.default_layout

    def couplings(self, layer: LayerShape) -> LayerCouplings:
        """What can be folded of a layer."""
        return self.kinds[layer.kind].couplings

    def folds_heads(self, layer: LayerShape) -> bool:
        """Whether heads of such a layer can be folded."""
        return self.couplings(layer).heads is not None

    def mlps(self, layer: LayerShape) -> int:
        """How many MLPs a layer has, every expert counted."""
        return len(self.couplings(layer).neurons)

    @property
    def is_plain(self) -> bool:
        """Whether every layer is one gated MLP and one attention, each tensor of one role, none of them kept."""
        couplings = [self.couplings(layer) for layer in self.layers]
        return all(
            each.heads is not None
            and len(each.neurons) == 1
            and all(part.is_plain for part in (*each.neurons, each.heads))
            and {"gate", "up", "down"} <= each.neurons[0].slots.keys()
            for each in couplings
        )

    def units(self, coupling: NeuronCoupling, layer: LayerShape) -> int:
        """Neurons of a coupling in a layer as wide as ``layer``."""
        return self.kinds[layer.kind].units(coupling, layer)

    def layer_roles(self, layer: LayerShape) -> Iterator[tuple[Role, tuple[int, ...]]]:
        """Yield role and shape of every tensor of a decoder layer of widths ``layer``, in module order."""
        yield from self.kinds[layer.kind].narrowed(layer).items()

    def layer_paths(self, layer: LayerShape) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name in the layer and shape of every tensor of a layer of widths ``layer``."""
        return ((tensor_path(role), size) for role, size in self.layer_roles(layer))

    def layer_parameters(self, layer: LayerShape) -> int:
        """Parameters of one decoder layer of widths ``layer``."""
        return self.kinds[layer.kind].parameters(layer)

    @property
    def inferred(self) -> str:
        """What was found to fold, and what is kept, in words; empty of a family that llmfold was told of."""
        if self.architecture.registered:
            return ""
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

    @cached_property
    def outside_parameters(self) -> int:
        """Parameters outside the decoder layers; a tied head once."""
        head = f"{self.stock.head_path}.weight"
        return sum(math.prod(size) for name, size in self.stock.outside.items() if not (self.tied and name == head))

    def stored_names(self, index: int) -> list[str]:
        """Names of the stored tensors of a layer."""
        return self.names_in(Piece(index))

    def _groups(self, index: int) -> Sequence[Group]:
        return self.layout.under(f"{self.stock.path}.{index}")

    def pieces(self, index: int) -> list[Piece]:
        """A layer in the pieces that it can be read, folded and written in, one after the other."""
        layer = self.layers[index]
        found = in_groups(index, dict(self.layer_roles(layer)), self.couplings(layer))
        parted = next((piece for piece in found if piece.experts is not None), None)
        experts = sum(len(piece.experts or ()) for piece in found)
        if parted and not all(self.layout.can_part(group, experts) for group in self._groups_of(parted)):
            return [Piece(index)]
        return found

    def apart(self, index: int) -> tuple[int, int]:
        """See :meth:`ModelShape.apart`."""
        layer, first = self.layers[index], dict[bool, Piece]()
        for piece in self.pieces(index):
            first.setdefault(piece.experts is not None, piece)  # no group is larger than the first
        group, rest = (
            self.of_piece(first[apart]).layer_parameters(layer) if apart in first else 0 for apart in (True, False)
        )
        return group, rest

    def of_piece(self, piece: Piece) -> "StockShape":
        """The shape as a piece of a layer has it: its tensors and couplings stand for those of the whole layer."""
        if piece.whole:
            return self
        number = self.layers[piece.layer].kind
        kinds = (*self.kinds[:number], self.kinds[number].of_piece(piece), *self.kinds[number + 1 :])
        return dataclasses.replace(self, kinds=kinds)

    def names_in(self, piece: Piece) -> list[str]:
        """Names of the stored tensors that a piece is read from."""
        return [name for group in self._groups_of(piece) for name, _ in group.stored]

    def _groups_of(self, piece: Piece) -> Sequence[Group]:
        groups, start = self._groups(piece.layer), len(f"{self.stock.path}.{piece.layer}.")
        return [group for group in groups if any(piece.has(role_of(name[start:])) for name in group.parameters)]

    def unpack_piece(self, piece: Piece, read: ReadPart) -> dict[Role, Tensor]:
        """The tensors of a piece by role; ``read`` gives a stored tensor, or some entries of its first axis."""
        start, groups = len(f"{self.stock.path}.{piece.layer}."), self._groups_of(piece)
        if piece.experts is None:
            made = self.layout.load(groups, lambda name: read(name, None))
        else:
            made = self.layout.load_part(groups, read, piece.experts)
        return {role_of(name[start:]): tensor for name, tensor in made.items()}

    def unpack_deferred(self, index: int, read: ReadPart) -> dict[Role, Tensor]:
        """A layer's tensors by role; where its experts can be read apart, theirs are read when they are needed."""
        groups = [piece for piece in self.pieces(index) if piece.experts is not None]
        if not groups:
            return self.unpack_piece(Piece(index), read)
        (rest,) = (piece for piece in self.pieces(index) if piece.experts is None)
        assert groups[0].roles is not None
        experts = Experts(partial(self._expert, index, groups[0].roles, read))
        shapes = {role: size for role, size in self.layer_roles(self.layers[index]) if groups[0].has(role)}
        return {**self.unpack_piece(rest, read), **experts.stacks(shapes)}

    def _expert(self, index: int, roles: frozenset[Role], read: ReadPart, number: int) -> dict[Role, Tensor]:
        made = self.unpack_piece(Piece(index, roles, range(number, number + 1)), read)
        return {role: tensor[0] for role, tensor in made.items()}

    def pack_piece(self, piece: Piece, weights: Mapping[Role, Tensor]) -> dict[str, Tensor]:
        """The tensors of a piece by the names they are stored under, from those by role."""
        start, groups = f"{self.stock.path}.{piece.layer}.", self._groups_of(piece)
        named = {start + tensor_path(role): tensor for role, tensor in weights.items()}
        if piece.experts is None:
            return self.layout.store(groups, named)
        return self.layout.store_part(groups, named, piece.experts)

    def unpack(self, index: int, read: Callable[[str], Tensor]) -> dict[Role, Tensor]:
        """A layer's tensors by role; ``read`` gives a stored tensor."""
        return self.unpack_piece(Piece(index), lambda name, part: read(name))

    def pack(self, index: int, weights: Mapping[Role, Tensor]) -> dict[str, Tensor]:
        """A layer's tensors by the names they are stored under, from those by role."""
        return self.pack_piece(Piece(index), weights)

    def stored_shapes(self, index: int, layer: LayerShape) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's stored tensors at widths ``layer``."""
        meta = {role: torch.empty(size, device="meta") for role, size in self.layer_roles(layer)}
        return {name: tuple(tensor.shape) for name, tensor in self.pack(index, meta).items()}

    def stored_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all stored tensors."""
        outside = self.layout.store(self._outside_groups(), self._meta())
        return self.layer_stored() | {name: tuple(tensor.shape) for name, tensor in outside.items()}

    def _outside_groups(self) -> list[Group]:
        return [group for group in self.layout.groups if not self.stock.is_inside(group.target)]

    def _meta(self) -> dict[str, Tensor]:
        return {name: torch.empty(size, device="meta") for name, size in self.stock.parameters.items()}

    def check_stored(self, stored: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError as :meth:`of_stored` does."""
        if self.stored_layout is None or self.stored_layout.stored != stored:
            self.of_stored(stored)

    def of_stored(self, stored: Mapping[str, tuple[int, ...]]) -> "StockShape":
        """The same for a checkpoint that stores tensors of these names and shapes.

        Raises:
            CheckpointError: a tensor is missing, of the wrong shape, or unknown.
        """
        layout = Layout(self.stock.model, self.all_parameters(), stored)
        ends = {f"{path}.weight" for path in (self.stock.head_path, self.stock.embedding_path)}
        missing = layout.missing(self.stock.parameters)
        if self.tied and not ends <= set(missing):
            missing = [name for name in missing if name not in ends]
        if missing:
            raise refusals.missing(missing[0])
        return dataclasses.replace(self, stored_layout=layout)

    def all_parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all parameters; layers may be narrower than those of the stock model."""
        return {**self.stock.outside} | {
            f"{self.stock.path}.{index}.{path}": size
            for index, layer in enumerate(self.layers)
            for path, size in self.layer_paths(layer)
        }

    def end_names(self) -> list[str]:
        """Stored names of the embedding and of the head, of those that are stored."""
        ends = {f"{path}.weight" for path in (self.stock.embedding_path, self.stock.head_path)}
        return [name for group in self.layout.groups if group.target in ends for name, _ in group.stored]

    def outside(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Parameters outside the layers that text passes, by name; ``read`` gives a stored tensor.

        A tied head is there twice.
        """
        groups = (group for group in self._outside_groups() if not self.stock.language.isdisjoint(group.parameters))
        made = self.layout.load(groups, read)
        head, embedding = f"{self.stock.head_path}.weight", f"{self.stock.embedding_path}.weight"
        if self.tied:
            made.setdefault(head, made.get(embedding, made.get(head)))  # type: ignore[arg-type]
            made.setdefault(embedding, made[head])
        return made
