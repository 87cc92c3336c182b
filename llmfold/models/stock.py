"""The stock model without weights: its own layers and its own ends, run on tensors that are handed to them.

The class of transformers is the one source of truth of what a model computes: where norms stand, what is scaled,
capped, windowed or rotated. It is built on the meta device. Its forward pass runs with stubs in the place of decoder
layers, which tell what each layer is given beside the hidden states; layers run one by one by functional calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from llmfold.errors import CheckpointError
from llmfold.models.base import Role, tensor_path
from llmfold.models.casting import cast_linear, row_blocks
from llmfold.models.layout import Layout, default_names
from llmfold.models.settings import setting, text_config
from llmfold.models.skeleton import layers_path
from llmfold.runtime.devices import repeatable_attention

Outside = Mapping[str, Tensor]
"""Parameters outside the decoder layers, by their names in the model, of any float dtype."""
_HANDED_ON = object()
"""What a stub returns beside hidden states: a layer that is given it depends on more than those."""


class _StopError(Exception):
    """Everything that was asked for is known; what follows need not be computed."""


class _Stub(nn.Module):
    """Stands in a layer's place; it tells the shell what the layer is given, and passes on what the shell says."""

    def __init__(self, layer: nn.Module, index: int, visit: Callable[[int, Tensor, tuple[Any, ...], Any], Any]) -> None:
        super().__init__()
        self.__dict__.update(_layer=layer, _index=index, _visit=visit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)

    def forward(self, *args: Any, **named: Any) -> Any:
        if args:
            return self._visit(self._index, args[0], args[1:], named)
        return self._visit(self._index, named.pop("hidden_states"), (), named)


def _same(one: Any, other: Any) -> bool:
    """Whether two layers' arguments, or lists of them, are equal in every tensor."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, Given):
        return isinstance(other, Given) and _same([one.args, one.named], [other.args, other.named])
    if isinstance(one, dict):
        return isinstance(other, dict) and all(_same(value, other.get(key)) for key, value in one.items())
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and all(map(_same, one, other))
    return True


@dataclass(frozen=True)
class Given:
    """What the layer of an index is given beside the hidden states."""

    index: int
    args: tuple[Any, ...]
    named: dict[str, Any]


@dataclass
class Seen:
    """What was seen of a layer while it ran.

    Attributes:
        inputs: of modules by path.
        outputs: of modules by path.
        after: the states after the layer, where it ran to its end.
    """

    inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    after: Tensor | None = None

    def input_hook(self, path: str, wanted: int) -> Callable[..., None]:
        """What notes a module's inputs, and stops the layer once so many modules were seen as are ``wanted``."""

        def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.inputs[path] = (*args, *named.values())
            self._stop_at(wanted)

        return note

    def output_hook(self, path: str, wanted: int) -> Callable[..., None]:
        """The same for its outputs."""

        def note(module: nn.Module, args: Any, output: Any) -> None:
            given: Tensor = output[0] if isinstance(output, tuple) else output
            # What stands behind may add to it in place; where gradients are wanted it is part of the graph.
            self.outputs[path] = given if given.requires_grad else given.clone()
            self._stop_at(wanted)

        return note

    def _stop_at(self, wanted: int) -> None:
        if len(self.inputs) + len(self.outputs) == wanted:
            raise _StopError


class StockModel:
    """A stock model's layers and ends.

    Attributes:
        model: on the meta device, with stubs for layers.
        layers: its decoder layers.
        path: of the list of layers in the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model as :func:`build_stock` gives it."""
        self.path = layers_path(model)
        self.parameters = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.model, self.layers = model, list(model.get_submodule(self.path))
        parent, _, name = self.path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.ModuleList())
        stubs = [_Stub(layer, index, self._visit) for index, layer in enumerate(self.layers)]
        setattr(model.get_submodule(parent), name, nn.ModuleList(stubs))
        self.embedding_path, self.head_path = (
            next((name for name, module in model.named_modules() if module is end), "")
            for end in (model.get_input_embeddings(), model.get_output_embeddings())
        )
        if not self.embedding_path or not self.head_path:
            raise CheckpointError(f"{type(model).__name__} has no embedding and head of tokens")
        self._device = torch.device("cpu")
        self._extra: tuple[Any, ...] | None = None
        self._on_visit: Callable[[int, Tensor, Given], Tensor] = lambda index, hidden, given: hidden
        self._given: dict[tuple[int, int, torch.device], list[Given]] = {}

    @cached_property
    def default_layout(self) -> Layout:
        """How the tensors of a checkpoint as transformers writes it become the parameters."""
        return Layout(self.model, self.parameters, default_names(self.model, self.parameters))

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return int(text_config(self.model.config).hidden_size)

    def _visit(self, index: int, hidden: Tensor, args: tuple[Any, ...], named: Any) -> Any:
        result = self._on_visit(index, hidden, Given(index, args, named))
        return result if self._extra is None else (result, *self._extra)

    @contextmanager
    def _visiting(self, on_visit: Callable[[int, Tensor, Given], Tensor]) -> Iterator[None]:
        before, self._on_visit = self._on_visit, on_visit
        try:
            yield
        finally:
            self._on_visit = before

    def embed(self, outside: Outside, tokens: Tensor) -> Tensor:
        """Hidden states before the first layer, (sequences, tokens, hidden) float32, of tokens (sequences, tokens)."""
        first: list[Tensor] = []

        def stop(index: int, hidden: Tensor, given: Given) -> Tensor:
            first.append(hidden)
            raise _StopError

        self._to(tokens.device)
        tensors = self._with_rows(outside, tokens)
        with self._visiting(stop), suppress(_StopError):
            functional_call(self.model, tensors, (tokens,), {"use_cache": False}, tie_weights=False)
        return first[0]

    def _with_rows(self, outside: Outside, tokens: Tensor) -> dict[str, Tensor]:
        """What stands before the layers; of the embedding those rows that the tokens look up, the others take none."""
        name = f"{self.embedding_path}.weight"
        table, ids = torch.from_numpy(np.zeros(self.parameters[name], np.float32)), torch.unique(tokens)
        table[ids] = outside[name][ids].float()
        known = {key: outside[key] for key in outside.keys() & self._before}
        return {**self._unseen(tokens.device), **known, name: table}

    def widened(self, outside: Outside) -> dict[str, Tensor]:
        """Parameters outside the layers in float32, but for the embedding and the head, of which parts are used."""
        tables = {f"{path}.weight" for path in (self.embedding_path, self.head_path)}
        return {name: tensor if name in tables else tensor.float() for name, tensor in outside.items()}

    @cached_property
    def outside(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the parameters outside the layers, by name."""
        return {name: size for name, size in self.parameters.items() if not self.is_inside(name)}

    @cached_property
    def language(self) -> frozenset[str]:
        """Parameters outside the layers that text passes; of a wrapper those of its decoder, and the ends."""
        if text_config(self.model.config) is self.model.config:
            return frozenset(self.outside)
        parts = (self.path.rpartition(".")[0], self.embedding_path, self.head_path)
        return frozenset(name for name in self.outside if name.startswith(tuple(f"{part}." for part in parts)))

    def _unseen(self, device: torch.device) -> dict[str, Tensor]:
        """What text does not pass, without room: a wrapper may ask its first parameter where to compute."""
        zero = torch.zeros((), device=device)
        return {name: zero.expand(size) for name, size in self.outside.items() if name not in self.language}

    @property
    def _before(self) -> set[str]:
        """Parameters outside the layers that are not the output embedding."""
        head = f"{self.head_path}."
        return {name for name in self.language if not name.startswith(head)}

    def is_inside(self, name: str) -> bool:
        """Whether a parameter of the model belongs to a decoder layer."""
        return name.startswith(f"{self.path}.")

    def given(self, sequences: int, tokens: int, device: torch.device) -> list[Given]:
        """What every layer is given beside hidden states of so many sequences of so many tokens."""
        key = (sequences, tokens, device)
        if key not in self._given:
            self._given.clear()
            self._given[key] = self._record(sequences, tokens, device)
        return self._given[key]

    def refuse_dependence(self) -> None:
        """Raise CheckpointError where a layer needs more than the hidden states before it and their places."""
        name, cpu = type(self.model).__name__, torch.device("cpu")
        if setting(text_config(self.model.config), "num_kv_shared_layers"):
            raise CheckpointError(f"layers of {name} share keys and values: llmfold cannot fold them one by one")
        ids = torch.arange(3)[None]
        if not _same(self._record(1, 3, cpu), self._record(1, 3, cpu, ids)):
            raise CheckpointError(
                f"layers of {name} are given more of the tokens than hidden states: llmfold cannot fold them one by one"
            )

    def _record(self, sequences: int, tokens: int, device: torch.device, ids: Tensor | None = None) -> list[Given]:
        found: list[Given] = []
        self._to(device)

        def note(index: int, hidden: Tensor, given: Given) -> Tensor:
            if hidden.ndim != 3 or any(value is _HANDED_ON for value in (*given.args, *given.named.values())):
                raise TypeError("not hidden states of sequences alone")
            found.append(given)
            return hidden

        def stop(module: nn.Module, inputs: Any) -> None:
            raise _StopError

        if ids is None:
            ids = torch.zeros(sequences, tokens, dtype=torch.int64, device=device)
        outside = {**self._unseen(device), **{name: self._stand_in(name, device) for name in self._before}}
        for self._extra in (None, (), (_HANDED_ON,)):
            found.clear()
            hook = self.model.get_submodule(self.head_path).register_forward_pre_hook(stop)
            try:
                with self._visiting(note), torch.no_grad():
                    functional_call(self.model, outside, (ids,), {"use_cache": False}, tie_weights=False)
            except _StopError:
                if [given.index for given in found] == list(range(len(self.layers))):
                    return list(found)
            except (TypeError, IndexError, KeyError, RuntimeError, ValueError, AttributeError):
                pass  # what the model does with the hidden states of a stub tells that it returns something else
            finally:
                hook.remove()
        raise CheckpointError(
            f"the layers of {type(self.model).__name__} hand on more than hidden states, or run in another order than "
            "they stand: llmfold cannot fold them one by one"
        )

    def _stand_in(self, name: str, device: torch.device) -> Tensor:
        """A parameter that takes no room; tables of tokens differ from row to row."""
        shape = self.parameters[name]
        if len(shape) == 2 and shape[0] > 1:
            return torch.arange(shape[0], dtype=torch.float32, device=device)[:, None].expand(shape)
        return torch.ones((), device=device).expand(shape)

    def _to(self, device: torch.device) -> None:
        """Move buffers; parameters stay where they take no room."""
        if self._device == device:
            return
        self._device = device
        for root in (self.model, *self.layers):
            for module in root.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    module._buffers[name] = buffer.to(device)

    @contextmanager
    def sharing(self, index: int, queries: int) -> Iterator[None]:
        """For as long as it lasts, a layer has so many query heads a key/value head, whatever its config says."""
        modules = [m for m in self.layers[index].modules() if "num_key_value_groups" in vars(m)]
        before = [module.num_key_value_groups for module in modules]
        try:
            for module in modules:
                module.num_key_value_groups = queries
            yield
        finally:
            for module, number in zip(modules, before, strict=True):
                module.num_key_value_groups = number

    def layer(self, index: int, weights: Mapping[Role, Tensor], x: Tensor) -> Tensor:
        """Hidden states after a decoder layer; (sequences, tokens, hidden) in and out.

        Args:
            index: of the layer.
            weights: all its tensors by role, in the dtype and on the device of ``x``.
            x: states before it.
        """
        given = self.given(x.shape[0], x.shape[1], x.device)[index]
        self._to(x.device)
        named = {tensor_path(role): tensor for role, tensor in weights.items()}
        with repeatable_attention(x):
            result = functional_call(self.layers[index], named, (x, *given.args), given.named, tie_weights=False)
        after: Tensor = result[0] if isinstance(result, tuple) else result
        return after

    def watched(
        self,
        index: int,
        weights: Mapping[Role, Tensor],
        x: Tensor,
        *,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        stop: bool = False,
    ) -> Seen:
        """Run a decoder layer as :meth:`layer` does, and look at modules in it.

        Args:
            index: of the layer.
            weights: as of :meth:`layer`.
            x: as of :meth:`layer`.
            inputs: paths of modules whose inputs are wanted.
            outputs: paths of modules whose outputs are wanted.
            stop: whether nothing else is wanted, so that the rest of the layer need not run.
        """
        seen, layer = Seen(), self.layers[index]
        wanted = len(inputs) + len(outputs) if stop else -1
        hooks = [
            *(
                layer.get_submodule(path).register_forward_pre_hook(seen.input_hook(path, wanted), with_kwargs=True)
                for path in inputs
            ),
            *(layer.get_submodule(path).register_forward_hook(seen.output_hook(path, wanted)) for path in outputs),
        ]
        try:
            with suppress(_StopError):
                seen.after = self.layer(index, weights, x)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def logits(self, outside: Outside, x: Tensor) -> Tensor:
        """(sequences, tokens, vocabulary) float32 of hidden states after the last layer, differentiable in them.

        Args:
            outside: as of :meth:`widened`; the output embedding is widened block by block.
            x: (sequences, tokens, hidden) float32.
        """
        self._to(x.device)
        last = len(self.layers) - 1
        ids = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        head, looked_up = self.model.get_submodule(self.head_path), f"{self.embedding_path}.weight"
        none = torch.zeros(1, device=x.device).expand(self.parameters[looked_up])
        tensors = {**self._unseen(x.device), **outside, looked_up: none}
        forward, head.forward = head.forward, lambda rows: _Widened.apply(rows, head.weight, head.bias)  # type: ignore[no-untyped-call]
        try:
            with self._visiting(lambda index, hidden, given: x if index == last else hidden):
                result = functional_call(self.model, tensors, (ids,), {"use_cache": False}, tie_weights=False)
        finally:
            head.forward = forward
        logits: Tensor = result.logits
        return logits


class _Widened(torch.autograd.Function):
    """A product with a matrix (out, in) of another dtype, widened block by block, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return cast_linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total, start = gradient.new_zeros(*gradient.shape[:-1], ctx.weight.shape[1]), 0
        for block in row_blocks(ctx.weight, gradient.dtype):
            total += gradient[..., start : start + len(block)] @ block.to(gradient.dtype)
            start += len(block)
        return total, None, None
