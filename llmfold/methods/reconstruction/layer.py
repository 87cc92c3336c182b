"""Folding one layer: which units go, what their consumers become in closed form, and a refinement of what is left."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.folding.heads import unit_views
from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import Folded, Weights
from llmfold.methods.dense import LayerInputs, NeuronInputs
from llmfold.methods.reconstruction.held import split
from llmfold.methods.reconstruction.importance import Importance
from llmfold.methods.reconstruction.losses import Losses
from llmfold.methods.reconstruction.orders import Orders
from llmfold.methods.reconstruction.refitting import Consumer, Refitted, Sums, refit_consumer
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import NeuronCoupling
from llmfold.models.pieces import Piece
from llmfold.models.slots import Slots, narrowed
from llmfold.planning.sensitivity import Part
from llmfold.repair.least_squares import ActivationSums, activation_sums
from llmfold.repair.refine import Refinement, refine
from llmfold.runtime.hidden_states import CHUNK
from llmfold.runtime.seeding import mixed_seed
from llmfold.runtime.timing import StageTimer
from llmfold.selection.elimination import Elimination, eliminate_blocks, eliminate_units

Follow = Callable[[Weights, LayerShape], LayerInputs]
"""From a layer whose attention is folded (float32 tensors on the device, and their widths) to states around it."""
SELECTION_RIDGE = 1e-3
_GAUSSIAN_ROWS, _GAUSSIAN_BLOCK = 8192, 1024
_FEW_SHARE = 0.5
"""Share of random inputs where an expert is given too few tokens to tell its neurons apart."""


@dataclass(frozen=True)
class ReconstructionOptions:
    """Settings of the reconstruction.

    Attributes:
        refinement: gradient steps after the closed form; zero steps leave that alone.
        gaussian: share of a Gram from x ~ N(0, gain²) mixed in, for directions that the rows lack.
        metric: (hidden, m) map of outputs whose squared norm selects neurons, or None.
        importance: gives every layer a metric of its own, in which neurons and heads are selected; or None.
        losses: measures what parts of the layers cost, which puts their curves on one scale; or None.
    """

    refinement: Refinement = field(default_factory=Refinement)
    gaussian: float = 0.0
    metric: Tensor | None = None
    importance: Importance | None = None
    losses: Losses | None = None


class LayerReconstruction:
    """One layer on the states around it."""

    def __init__(
        self,
        config: FoldConfig,
        options: ReconstructionOptions,
        inputs: LayerInputs,
        chunk: int = CHUNK,
        follow: Follow | None = None,
    ) -> None:
        """Set up; nothing is computed yet.

        Args:
            config: gives the seed, and the dtype of the tensors written.
            options: settings.
            inputs: the layer with the states around it.
            chunk: sequences at once.
            follow: gives the states that the MLP is refined on; None: those that it is fitted on.
        """
        self._chunk, self._follow = chunk, follow
        self._config, self._options, self._inputs = config, options, inputs
        self._measurement, self._widths = inputs.measurement, inputs.shape
        self._shape = self._measurement.shape
        self._orders = Orders.of(self._measurement)
        self.couplings = self._shape.couplings(inputs.shape)
        heads = self.couplings.heads
        self._attention_weights = {} if heads is None else heads.view(inputs.weights, inputs.shape)
        self._reader, self._heads = heads.reader if heads else "", heads
        self._unit_size = self._widths.heads * self._shape.head_dim // max(self._widths.head_units, 1)
        self._train, self._held = split(self._measurement.size[0], chunk)
        self._judged = self._held or self._train
        self._known: dict[str, Sums] = {}
        self._record = LayerRecord()
        self._stages = StageTimer(self._record.seconds)

    def fold(self, piece: Piece, stored: Weights, after: LayerShape) -> Folded:
        """A piece of the layer at widths ``after``, in the dtypes of ``stored`` or the one that is asked for."""
        shapes = dict(self._shape.of_piece(piece).layer_roles(after))
        return narrowed(stored, self._parts(piece, stored, after), shapes, after), self._record

    def silenced(self, after: LayerShape) -> dict[Role, Tensor]:
        """The layer as wide as it is, whose consumers read only the units that are left at widths ``after``.

        They are refit on the rows to fit on only, and nothing is refined, so that rows held back can judge the layer.
        """
        weights, widths = self._inputs.weights, self._widths
        shapes = {role: tuple(tensor.shape) for role, tensor in weights.items()}
        return narrowed(weights, self._silenced(after), shapes, widths)

    def _silenced(self, after: LayerShape) -> Iterator[tuple[Slots, dict[Role, Tensor]]]:
        """Consumers of the couplings that are narrower at ``after``, and where they lie."""
        if self._heads is not None and after.heads != self._widths.heads:
            kept, refitted = self._refit_heads(after)
            features = _features(kept, self._unit_size)
            yield (
                self._heads.slots,
                _padded(self._attention_weights[self._reader], features, refitted.train, self._reader),
            )
        for coupling in self.couplings.neurons if after.intermediate != self._widths.intermediate else ():
            inputs = self._inputs.neurons_of(coupling)
            kept, refitted = self._refit_neurons(inputs, self._shape.units(coupling, after))
            yield coupling.slots, _padded(inputs.weights[coupling.reader], kept, refitted.train, coupling.reader)

    def _parts(self, piece: Piece, stored: Weights, after: LayerShape) -> Iterator[tuple[Slots, dict[Role, Tensor]]]:
        """Folded tensors of each coupling of the piece, one after the other, and where they lie in it."""
        places, attention = piece.couplings(self.couplings), list[tuple[Slots, dict[Role, Tensor]]]()
        if after.heads != self._widths.heads and places.heads is not None:
            attention = [(places.heads.slots, self._rounded(places.heads.slots, stored, self._attention(after)))]
            yield from attention
        if after.intermediate != self._widths.intermediate:
            whole = {each.name: each for each in self.couplings.neurons}
            for place in places.neurons:
                follow = partial(self._followed, attention, after)
                folded, record = self._mlp(whole[place.name], self._shape.units(place, after), follow)
                self._record.add_mlp(record)
                yield place.slots, self._rounded(place.slots, stored, folded)

    def _rounded(self, slots: Slots, stored: Weights, folded: dict[Role, Tensor]) -> dict[Role, Tensor]:
        """Folded tensors in the dtypes of those stored, or in the one that is asked for."""
        chosen = self._config.dtype
        return {
            role: tensor.to(stored[slots[role].tensor].dtype if chosen == "auto" else getattr(torch, chosen))
            for role, tensor in folded.items()
        }

    def head_order(self, keep: int) -> Elimination:
        """Order in which head units (KV groups with their query heads, or query heads under MQA) go."""

        def eliminate() -> Elimination:
            sums, weights = self._sums("heads", self._inputs.heads).whole, self._attention_weights
            metric = self._metric("heads", lambda: sums.weight / self._measurement.rows)
            rows = weights[self._reader].T
            seen = rows if metric is None else rows.to(metric) @ metric
            free = _free_of_bias(sums, weights, self._reader)
            return eliminate_blocks(free, seen, keep, self._unit_size, SELECTION_RIDGE)

        return self._orders.find(self._inputs.index, "heads", keep, eliminate)

    def neuron_order(self, coupling: NeuronCoupling, keep: int) -> Elimination:
        """Order in which a coupling's neurons go."""

        def eliminate() -> Elimination:
            inputs = self._inputs.neurons_of(coupling)
            sums, rows = self._neuron_sums(inputs).whole, inputs.weights[coupling.reader].T
            metric = self._metric("neurons", lambda: self._inputs.mean_weight)
            free = _free_of_bias(sums, inputs.weights, coupling.reader)
            return eliminate_units(free, rows, keep, SELECTION_RIDGE, metric=metric)

        return self._orders.find(self._inputs.index, coupling.name, keep, eliminate)

    def _metric(self, part: Part, weight: Callable[[], float]) -> Tensor | None:
        """Metric of what a part of the layer gives: squares of rows that weigh ``weight`` on average become nats."""
        if self._options.importance is None:
            return self._options.metric if part == "neurons" else None
        metric = self._options.importance.metric(self._inputs.index, part).to(self._measurement.device)
        return metric / math.sqrt(max(2 * weight(), 1e-30))

    def _sums(self, part: str, rows: Callable[[slice], tuple[Tensor, Tensor]]) -> Sums:
        """Sums over what the consumer of a part reads: ``rows`` gives features and row weights."""
        if part not in self._known:
            self._known = {}  # those of one consumer at a time: they are the largest tensors of all
            train = activation_sums(map(rows, self._train))
            whole = train + activation_sums(map(rows, self._held)) if self._held else train
            self._known[part] = Sums(train, whole)
            self._stages.lap("measure")
        return self._known[part]

    def _neuron_sums(self, inputs: NeuronInputs) -> Sums:
        name = inputs.coupling.name
        if name in self._known:
            return self._known[name]

        def rows(part: slice) -> tuple[Tensor, Tensor]:
            x, _, w = inputs.mlp(part)
            return inputs.neurons(x), w

        sums = self._sums(name, rows)
        share = self._options.gaussian or (_FEW_SHARE if inputs.scarce else 0.0)
        if share:
            self._known[name] = Sums(*(self._with_gaussian(each, inputs, share) for each in sums))
        return self._known[name]

    def _with_gaussian(self, sums: ActivationSums, inputs: NeuronInputs, share: float) -> ActivationSums:
        """Replace a share of the Gram's trace by rows x ~ N(0, scale²)."""
        scale = inputs.scale
        generator = torch.Generator().manual_seed(self._config.seed + self._inputs.index)
        x = torch.randn(_GAUSSIAN_ROWS, len(scale), generator=generator).to(scale.device) * scale
        blocks = torch.split(x, _GAUSSIAN_BLOCK)
        extra = activation_sums((inputs.neurons(rows), torch.ones(len(rows), device=scale.device)) for rows in blocks)
        if not sums.trace:
            return sums + extra
        return sums.scaled(1 - share) + extra.scaled(share * sums.trace / max(extra.trace, 1e-30))

    def _attention(self, after: LayerShape) -> dict[Role, Tensor]:
        kept, refitted = self._refit_heads(after)
        assert self._heads is not None
        views = unit_views(self._heads, self._attention_weights, self._widths, self._widths.head_units)
        producers = {role: w for role, w in self._attention_weights.items() if role in self._heads.producers}
        folded = producers | {role: view[kept].flatten(0, 1) for role, view in views.items() if role != self._reader}
        self._record.attention = {"before": self._widths.heads, "after": after.heads, **refitted.record}
        self._stages.lap("select")
        return folded | refitted.whole

    def _refit_heads(self, after: LayerShape) -> tuple[Tensor, Refitted]:
        """Head units that are left at widths ``after``, and their consumer."""
        kept, known = self.head_order(self._widths.units_in(after)).kept, self._attention_weights
        sums, outputs = self._sums("heads", self._inputs.heads), _features(kept, self._unit_size)
        return kept, refit_consumer(Consumer(self._reader, known, sums), outputs, map(self._head_rows, self._judged))

    def _refit_neurons(self, inputs: NeuronInputs, width: int) -> tuple[Tensor, Refitted]:
        """Neurons that are left, and their consumer."""
        kept = self.neuron_order(inputs.coupling, width).kept

        def rows(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            x, y, w = inputs.mlp(part)
            return inputs.neurons(x), y, w

        consumer = Consumer(inputs.coupling.reader, inputs.weights, self._neuron_sums(inputs))
        return kept, refit_consumer(consumer, kept, map(rows, self._judged))

    def _followed(self, attention: Iterable[tuple[Slots, dict[Role, Tensor]]], after: LayerShape) -> LayerInputs:
        """States to refine an MLP on, behind the layer's folded attention."""
        if self._follow is None:
            return self._inputs
        widths = replace(self._widths, heads=after.heads, kv_heads=after.kv_heads)
        shapes = dict(self._shape.layer_roles(widths))
        weights = self._measurement.wide(narrowed(self._inputs.weights, attention, shapes, widths))
        found = self._follow(weights, widths)
        self._stages.lap("forward")
        return found

    def _mlp(
        self, coupling: NeuronCoupling, width: int, follow: Callable[[], LayerInputs]
    ) -> tuple[dict[Role, Tensor], dict[str, Any]]:
        """A coupling's tensors at ``width`` neurons, and what the report says of it.

        Args:
            coupling: the neurons.
            width: how many are left.
            follow: gives the states to refine on.
        """
        inputs, reader, producers = self._inputs.neurons_of(coupling), coupling.reader, coupling.producers
        kept, refitted = self._refit_neurons(inputs, width)
        folded = {role: inputs.weights[role][kept] for role in producers}
        learned = inputs.weights.keys() - {*producers, reader, f"{reader}_bias"}  # of the activation itself
        folded |= {role: inputs.weights[role] for role in learned}
        self._known = {}  # the refinement needs the room
        self._stages.lap("select")
        record = {"before": coupling.units, "after": width, **refitted.record}
        refinement, seed = self._options.refinement, mixed_seed(self._config.seed, self._inputs.index)
        if refinement.steps and self._held and not inputs.scarce:
            start, on = folded | refitted.train, follow()
            refined, errors = refine(start, on.neurons_of(coupling), self._train, self._held, refinement, seed)
            record["refined_errors"] = errors
            self._stages.lap("refine")
            if errors[1] < errors[0]:
                if on is self._inputs:
                    record["error_after_repair"] = errors[1]
                return refined, record
        return folded | refitted.whole, record

    def _head_rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        heads, w = self._inputs.heads(part)
        known = self._attention_weights
        return heads, F.linear(heads, known[self._reader], known.get(f"{self._reader}_bias")), w


def _free_of_bias(sums: ActivationSums, weights: Weights, reader: Role) -> ActivationSums:
    """Sums as the refit sees them: a bias of the consumer takes up what is constant."""
    return sums.centred() if f"{reader}_bias" in weights else sums


def _padded(dense: Tensor, kept: Tensor, refitted: dict[Role, Tensor], reader: Role) -> dict[Role, Tensor]:
    """A refit consumer with zeros where it read what does not stay, as ``dense`` (outputs, features), and its bias."""
    whole = torch.zeros_like(dense)
    whole[:, kept.to(dense.device)] = refitted[reader]
    return refitted | {reader: whole}


def _features(units: Tensor, size: int) -> Tensor:
    return (units[:, None] * size + torch.arange(size)).flatten()
