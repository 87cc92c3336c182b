"""Folding as reconstruction: a narrower layer gives what the layer gave, on the inputs that the dense model gives it.

Every layer is fitted alone. To have it correct what earlier layers got wrong was measured to hurt: their errors add
up, and the correction is mostly noise that is fitted (eval/results/tried.md). So there is one stream of hidden states,
the dense model's, and layers are independent.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llmfold.folding.heads import unit_views
from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import FoldContext, Folded, LayerMethod, ReadLayer, Weights
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement, NeuronInputs
from llmfold.methods.method import Notify
from llmfold.methods.reconstruction.importance import Importance, Part
from llmfold.methods.reconstruction.losses import SingleLosses
from llmfold.methods.reconstruction.refitting import Consumer, Sums, refit_consumer
from llmfold.models import LayerShape, Role
from llmfold.models.coupling import NeuronCoupling
from llmfold.models.pieces import Piece
from llmfold.models.slots import Slots, narrowed
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import kept_neurons
from llmfold.repair.least_squares import ActivationSums, activation_sums
from llmfold.repair.refine import Refinement, refine
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, chunks, stored_tensors
from llmfold.runtime.seeding import mixed_seed
from llmfold.runtime.timing import StageTimer
from llmfold.selection.elimination import Elimination, eliminate_blocks, eliminate_units

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models

SELECTION_RIDGE = 1e-3
_GAUSSIAN_ROWS, _GAUSSIAN_BLOCK = 8192, 1024
_FEW_SHARE = 0.5
"""Share of random inputs where an expert is given too few tokens to tell its neurons apart."""


@dataclass(frozen=True)
class ReconstructionOptions:
    """Settings of the reconstruction.

    Attributes:
        held_back: fraction of sequences on which ridges and refinements are judged.
        refinement: gradient steps after the closed form; zero steps leave that alone.
        gaussian: share of a Gram from x ~ N(0, gain²) mixed in, for directions that the rows lack.
        metric: (hidden, m) map of outputs whose squared norm selects neurons, or None.
        importance: gives every layer a metric of its own, in which neurons and heads are selected; or None.
        losses: measures what single layers cost, which puts their curves on one scale; or None.
    """

    held_back: float = 0.125
    refinement: Refinement = field(default_factory=Refinement)
    gaussian: float = 0.0
    metric: Tensor | None = None
    importance: Importance | None = None
    losses: SingleLosses | None = None


class Reconstruction(LayerMethod):
    """``--method self``, ``calibrated`` and ``weights``: they differ in the hidden states that they measure on."""

    def __init__(
        self, context: FoldContext, measurement: Measurement, options: ReconstructionOptions, facts: dict[str, Any]
    ) -> None:
        """Set up; nothing is computed yet.

        Args:
            context: whose config gives the seed, and the dtype of the tensors written.
            measurement: hidden states to measure on.
            options: settings.
            facts: what is known of the states, for the report.
        """
        self.config, self.measurement, self.options, self._facts = context.config, measurement, options, facts
        self._states = DenseStates(measurement)
        self._chunk = CHUNK
        self._read_layer: ReadLayer | None = None
        self._around: LayerInputs | None = None

    def ready(self, read_layer: ReadLayer, notify: Notify) -> None:
        """Find out what directions of the residual stream matter, if units are selected by that."""
        if self.options.importance is not None:
            self.options.importance.ready(read_layer, notify)

    def measure(self, read_layer: ReadLayer, ratio: float, notify: Notify) -> Sensitivities:
        """Curves of all layers: the rise of the ridge objective along the backward elimination of neurons and heads.

        Errors count in nats, by what single layers were measured to lose about the width that the ratio means; where
        that is not measured, relative to the residual stream that they disturb, since the next RMSNorm divides by it.
        Each process eliminates in layers of its own; the order found is kept, and :meth:`fold` takes it up.

        Args:
            read_layer: tensors of a layer by role.
            ratio: about the fraction that will go, which bounds how far curves reach.
            notify: told of every layer.
        """
        measurement, layers, losses = self.measurement, self.measurement.shape.layers, self.options.losses
        for group in self.groups(range(len(layers))):
            notify(f"layer {group[0]}: measure")
            self.prepare(group, read_layer)
            own = measurement.team.shard(group)
            for index in group if losses else own:
                stored = read_layer(index)
                inputs = self._states.around(index, measurement.wide(stored))
                if losses:
                    losses.advance(index, inputs.weights)
                if index in own:
                    find = partial(self._find_orders, inputs, stored, ratio)
                    measurement.team.with_oom_retry(find, self._chunk, f"layer {index}")
        if losses:
            losses.finish(self._states.after(len(layers) - 1))
        self._states.close()
        rows = measurement.size[0] * measurement.size[1] * measurement.shape.hidden
        return Sensitivities([self._curves_of(index, rows, ratio) for index in range(len(layers))])

    def _curves_of(self, index: int, rows: int, ratio: float) -> LayerCurves:
        """Curves of a layer; those of several couplings of neurons add up at equal fractions."""
        layer = self.shape.layers[index]
        couplings, total = self.shape.couplings(layer), torch.zeros(1, dtype=torch.float64)
        for coupling in couplings.neurons:
            costs = _read_order(self._order_file(index, coupling.name)).costs.cumsum(0)
            curve = torch.cat((costs.new_zeros(1), costs)) / rows
            total = curve if len(total) == 1 else _added(total, curve, layer.intermediate / coupling.units)
        heads = [0.0]
        if couplings.heads is not None:
            heads += (_read_order(self._order_file(index, "heads")).costs.cumsum(0) / rows).tolist()
        curves = LayerCurves(total.tolist(), heads)
        losses = self.options.losses
        if losses is None:
            return curves
        neurons = layer.intermediate - self._fewer_neurons(layer, ratio).intermediate
        return curves.through((neurons, losses.loss(index, "neurons")), (1, losses.loss(index, "heads")))

    def _fewer_neurons(self, layer: LayerShape, ratio: float) -> LayerShape:
        """Widths of a layer that about ``ratio`` of its neurons have left."""
        grain = self.shape.grain
        return replace(layer, intermediate=max(grain, round(layer.intermediate * (1 - ratio) / grain) * grain))

    def _find_orders(self, inputs: LayerInputs, stored: Weights, ratio: float, chunk: int) -> None:
        """Eliminate as far as curves reach; begin to measure what the layer loses, its heads and its neurons apart."""
        layer, before, losses = _Layer(self, inputs, chunk, refines=False), inputs.shape, self.options.losses
        piece = Piece(inputs.index)
        if layer.couplings.heads is not None:
            layer.head_order(1)
            after = before.with_units(before.intermediate, before.head_units - 1)
            if losses and after.heads:
                losses.add("heads", inputs, layer.fold(piece, stored, after)[0], after)
        keep = replace(before, intermediate=kept_neurons(before.intermediate, ratio))
        for coupling in layer.couplings.neurons:
            layer.neuron_order(coupling, max(1, self.shape.units(coupling, keep)))
        after = self._fewer_neurons(before, ratio)
        if losses and layer.couplings.neurons and after != before:
            losses.add("neurons", inputs, layer.fold(piece, stored, after)[0], after)

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Layers (ascending) whose states are at hand together: one for each process."""
        count = self.measurement.team.count
        return (layers[start : start + count] for start in range(0, len(layers), count))

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """Move the dense states to a group of layers; all processes call this alike."""
        self._read_layer = read_layer
        move = partial(self._states.move_to, layers, read_layer)
        _, self._chunk = self.measurement.team.with_oom_retry(move, self._chunk, f"layer {layers[0]}")

    def fold(self, index: int, weights: Weights, before: LayerShape, after: LayerShape) -> Folded:
        """Choose units, refit their consumers, and refine what is left of the MLP."""
        return next(self.fold_at(Piece(index), weights, before, [after]))

    def fold_at(
        self, piece: Piece, weights: Weights, before: LayerShape, target_shapes: Sequence[LayerShape]
    ) -> Iterator[Folded]:
        """:meth:`fold` of a layer or a piece of it to several widths."""
        for after in target_shapes:
            yield (dict(weights), LayerRecord()) if before == after else self._folded(piece, weights, after)

    def _folded(self, piece: Piece, weights: Weights, after: LayerShape) -> Folded:
        inputs = self._inputs(piece, weights)

        def attempt(chunk: int) -> Folded:
            return _Layer(self, inputs, chunk).fold(piece, weights, after)

        return self.measurement.team.with_oom_retry(attempt, self._chunk, f"layer {piece.layer}")[0]

    def _inputs(self, piece: Piece, weights: Weights) -> LayerInputs:
        """The states around a layer, of which ``weights`` are a piece; what pieces share is found out once."""
        index, measurement = piece.layer, self.measurement
        if piece.whole:
            return self._states.around(index, measurement.wide(weights))
        if self._around is None or self._around.index != index:
            assert self._read_layer is not None
            self._around = self._states.around(index, measurement.wide(self._read_layer(index)))
        return self._around

    def on_committed(self) -> None:
        """What the pieces of the layer shared goes."""
        self._around = None

    def data_facts(self) -> dict[str, Any]:
        """What the states are, for the report."""
        return self._facts

    @property
    def shape(self) -> "StockShape":
        """The model's shape."""
        return self.measurement.shape

    def _order_file(self, index: int, part: str) -> Path:
        return self.measurement.work / STATE_FOLDER / f"order-{index:05d}-{part}.safetensors"

    def order(self, index: int, part: str, keep: int, eliminate: Callable[[], Elimination]) -> Elimination:
        """Elimination down to ``keep``, from the file of one that went as far or farther where there is one."""
        path = self._order_file(index, part)
        if path.exists() and len(_read_order(path).kept) > keep:
            path.unlink()
        order = Elimination(**stored_tensors(path, lambda: dict(vars(eliminate()))))
        units = len(order.kept) + len(order.removed)
        return Elimination.of(units, order.removed[: units - keep], order.costs[: units - keep])


def _read_order(path: Path) -> Elimination:
    return Elimination(**load_file(path))


def _added(total: Tensor, curve: Tensor, scale: float) -> Tensor:
    """A curve by the number of units removed, and another whose units are ``scale`` of the first's each."""
    places = (torch.arange(len(total)) / scale).round().long().clamp_max(len(curve) - 1)
    return total + curve[places]


def split(sequences: int, held_back: float, chunk: int = CHUNK) -> tuple[list[slice], list[slice]]:
    """Chunks of sequences to fit on, and chunks to judge on; a single block of ``CHUNK`` is only fitted on."""
    blocks = -(-sequences // CHUNK)
    held = max(1, round(blocks * held_back)) if blocks > 1 else 0
    first_held = (blocks - held) * CHUNK if held else sequences
    parts = list(chunks(sequences, chunk))
    return [p for p in parts if p.start < first_held], [p for p in parts if p.start >= first_held]


class _Layer:
    """One layer on the states around it."""

    def __init__(self, owner: Reconstruction, inputs: LayerInputs, chunk: int, *, refines: bool = True) -> None:
        self._owner, self._inputs, self._options, self._refines = owner, inputs, owner.options, refines
        self._widths = inputs.shape
        self.couplings = owner.shape.couplings(inputs.shape)
        heads = self.couplings.heads
        self._attention_weights = {} if heads is None else heads.view(inputs.weights, inputs.shape)
        self._reader, self._heads = heads.reader if heads else "", heads
        self._unit_size = self._widths.heads * owner.shape.head_dim // max(self._widths.head_units, 1)
        self._train, self._held = split(owner.measurement.size[0], self._options.held_back, chunk)
        self._judged = self._held or self._train
        self._known: dict[str, Sums] = {}
        self._record = LayerRecord()
        self._stages = StageTimer(self._record.seconds)

    def fold(self, piece: Piece, stored: Weights, after: LayerShape) -> Folded:
        """A piece of the layer at widths ``after``, in the dtypes of ``stored`` or the one that is asked for."""
        shapes = dict(self._owner.shape.of_piece(piece).layer_roles(after))
        return narrowed(stored, self._parts(piece, stored, after), shapes, after), self._record

    def _parts(self, piece: Piece, stored: Weights, after: LayerShape) -> Iterator[tuple[Slots, dict[Role, Tensor]]]:
        """Folded tensors of each coupling of the piece, one after the other, and where they lie in it."""
        places = piece.couplings(self.couplings)
        if after.heads != self._widths.heads and places.heads is not None:
            yield places.heads.slots, self._rounded(places.heads.slots, stored, self._attention(after))
        if after.intermediate != self._widths.intermediate:
            slots_of = {place.name: place.slots for place in places.neurons}
            for coupling in (each for each in self.couplings.neurons if each.name in slots_of):
                folded, record = self._mlp(coupling, self._owner.shape.units(coupling, after))
                self._record.add_mlp(record)
                slots = slots_of[coupling.name]
                yield slots, self._rounded(slots, stored, folded)

    def _rounded(self, slots: Slots, stored: Weights, folded: dict[Role, Tensor]) -> dict[Role, Tensor]:
        """Folded tensors in the dtypes of those stored, or in the one that is asked for."""
        chosen = self._owner.config.dtype
        return {
            role: tensor.to(stored[slots[role].tensor].dtype if chosen == "auto" else getattr(torch, chosen))
            for role, tensor in folded.items()
        }

    def head_order(self, keep: int) -> Elimination:
        """Order in which head units (KV groups with their query heads, or query heads under MQA) go."""

        def eliminate() -> Elimination:
            sums, rows = self._sums("heads", self._inputs.heads).whole, self._attention_weights[self._reader].T
            metric = self._metric(sums, "heads")
            seen = rows if metric is None else rows.to(metric) @ metric
            return eliminate_blocks(sums, seen, keep, self._unit_size, SELECTION_RIDGE)

        return self._owner.order(self._inputs.index, "heads", keep, eliminate)

    def neuron_order(self, coupling: NeuronCoupling, keep: int) -> Elimination:
        """Order in which a coupling's neurons go."""

        def eliminate() -> Elimination:
            inputs = self._inputs.neurons_of(coupling)
            sums, rows = self._neuron_sums(inputs).whole, inputs.weights[coupling.reader].T
            metric = self._options.metric if self._options.importance is None else self._metric(sums, "neurons")
            return eliminate_units(sums, rows, keep, SELECTION_RIDGE, metric=metric)

        return self._owner.order(self._inputs.index, coupling.name, keep, eliminate)

    def _metric(self, sums: ActivationSums, part: Part) -> Tensor | None:
        """Metric of what a part of the layer gives: weighted squares become nats of a row; on the sums' device."""
        importance, (sequences, tokens) = self._options.importance, self._owner.measurement.size
        if importance is None:
            return None
        weight = sums.weight / (sequences * tokens)
        return importance.metric(self._inputs.index, part).to(sums.gram.device) / math.sqrt(max(2 * weight, 1e-30))

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
        """Mix in rows x ~ N(0, scale²), weighted to a share of the Gram's trace."""
        scale = inputs.scale
        generator = torch.Generator().manual_seed(self._owner.config.seed + self._inputs.index)
        x = torch.randn(_GAUSSIAN_ROWS, len(scale), generator=generator).to(scale.device) * scale
        blocks = torch.split(x, _GAUSSIAN_BLOCK)
        extra = activation_sums((inputs.neurons(rows), torch.ones(len(rows), device=scale.device)) for rows in blocks)
        if not sums.trace:
            return sums + extra
        return sums + extra.scaled(share / (1 - share) * sums.trace / max(extra.trace, 1e-30))

    def _attention(self, after: LayerShape) -> dict[Role, Tensor]:
        kept, known = self.head_order(self._widths.units_in(after)).kept, self._attention_weights
        assert self._heads is not None
        views = unit_views(self._heads, known, self._widths, self._widths.head_units)
        folded = {role: view[kept].flatten(0, 1) for role, view in views.items() if role != self._reader}
        sums, outputs = self._sums("heads", self._inputs.heads), _features(kept, self._unit_size)
        refitted = refit_consumer(Consumer(self._reader, known, sums), outputs, map(self._head_rows, self._judged))
        self._record.attention = {"before": self._widths.heads, "after": after.heads, **refitted.record}
        self._stages.lap("select")
        return folded | refitted.whole

    def _mlp(self, coupling: NeuronCoupling, width: int) -> tuple[dict[Role, Tensor], dict[str, Any]]:
        """A coupling's tensors at ``width`` neurons, and what the report says of it."""
        kept, inputs = self.neuron_order(coupling, width).kept, self._inputs.neurons_of(coupling)
        reader, producers = coupling.reader, coupling.producers
        folded = {role: inputs.weights[role][kept] for role in producers}
        learned = inputs.weights.keys() - {*producers, reader, f"{reader}_bias"}  # of the activation itself
        folded |= {role: inputs.weights[role] for role in learned}

        def rows(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            x, y, w = inputs.mlp(part)
            return inputs.neurons(x), y, w

        refitted = refit_consumer(
            Consumer(reader, inputs.weights, self._neuron_sums(inputs)), kept, map(rows, self._judged)
        )
        self._known = {}  # the refinement needs the room
        self._stages.lap("select")
        record = {"before": coupling.units, "after": width, **refitted.record}
        refinement, seed = self._options.refinement, mixed_seed(self._owner.config.seed, self._inputs.index)
        if self._refines and refinement.steps and self._held and not inputs.scarce:
            start = folded | refitted.train
            refined, errors = refine(start, inputs, self._train, self._held, refinement, seed)
            record["refined_errors"] = errors
            self._stages.lap("refine")
            if errors[1] < errors[0]:
                record["error_after_repair"] = errors[1]
                return refined, record
        return folded | refitted.whole, record

    def _head_rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        heads, w = self._inputs.heads(part)
        known = self._attention_weights
        return heads, F.linear(heads, known[self._reader], known.get(f"{self._reader}_bias")), w


def _features(units: Tensor, size: int) -> Tensor:
    return (units[:, None] * size + torch.arange(size)).flatten()
