"""Folding as reconstruction: a narrower layer gives what the layer gave, on the inputs that the dense model gives it.

Every layer is fitted alone, on one stream of hidden states, the dense model's. To have the closed form correct what
earlier layers got wrong was measured to hurt: their errors add up, and the correction is mostly noise that is fitted
(eval/results/tried.md). The gradient steps after it correct a part of that, on a stream of the folded model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import FoldContext, Folded, LayerMethod, Output, ReadLayer, Weights
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement
from llmfold.methods.method import Notify
from llmfold.methods.reconstruction.folded import FoldedStates
from llmfold.methods.reconstruction.held import corrects
from llmfold.methods.reconstruction.layer import LayerReconstruction, ReconstructionOptions
from llmfold.methods.reconstruction.orders import Orders
from llmfold.models import LayerShape
from llmfold.models.pieces import Piece
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import Part, kept_neurons
from llmfold.runtime.hidden_states import CHUNK

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models


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
        self.reads_back = corrects(self.shape, options.refinement.steps, measurement.size[0])
        self._followed: dict[Path, FoldedStates] = {}
        self._due: list[int] = []

    def ready(self, read_layer: ReadLayer, notify: Notify) -> None:
        """Find out what directions of the residual stream matter, if units are selected by that."""
        if self.options.importance is not None:
            self.options.importance.ready(read_layer, notify)

    def measure(self, read_layer: ReadLayer, ratio: float, notify: Notify) -> Sensitivities:
        """Curves of all layers: the rise of the ridge objective along the backward elimination of neurons and heads.

        Errors count in nats where units are selected by what predictions lose, scaled to what parts of single layers
        and of all layers were measured to lose, if that is asked for; else relative to the mean square of the residual
        stream that they disturb, since the next RMSNorm divides by it.
        Each process eliminates in layers of its own; :meth:`fold` takes up the orders that were found on all sequences.

        Args:
            read_layer: tensors of a layer by role.
            ratio: about the fraction that will go, which bounds how far curves reach.
            notify: told of every layer.
        """
        measurement, layers, losses = self._measured, self.shape.layers, self.options.losses
        states = DenseStates(measurement)
        for group in self.groups(range(len(layers))):
            notify(f"layer {group[0]}: measure")
            self._move(states, group, read_layer)
            own = measurement.team.shard(group)
            narrowed = dict[int, tuple[LayerInputs, dict[Part, Weights]]]()
            for index in group if losses and losses.judged.alone else own:  # all layers carry what earlier ones lose
                inputs = states.around(index, measurement.wide(read_layer(index)))
                if losses:
                    losses.advance(index, inputs.weights)
                if index in own:
                    find = partial(self._find_orders, inputs, ratio)
                    found, _ = measurement.team.with_oom_retry(find, self._chunk, f"layer {index}")
                    narrowed[index] = inputs, found
                    if losses:
                        losses.begin(inputs, found)
            if losses:
                losses.advance_all(group, narrowed)
        if losses:
            losses.finish(states.after(len(layers) - 1))
        states.close()
        rows = measurement.rows
        if self.options.importance is None:
            rows *= measurement.shape.hidden
        curves = Sensitivities([self._curves_of(index, rows) for index in range(len(layers))])
        return losses.scaled(curves) if losses else curves

    def _curves_of(self, index: int, rows: int) -> LayerCurves:
        """Curves of a layer; those of several couplings of neurons add up at equal fractions."""
        layer, orders = self.shape.layers[index], Orders.of(self._measured)
        couplings, parts = self.shape.couplings(layer), list[Tensor]()
        for coupling in couplings.neurons:
            costs = orders.known(index, coupling.name).costs.cumsum(0)
            curve = torch.cat((costs.new_zeros(1), costs)) / rows
            parts.append(_resampled(curve, layer.intermediate / coupling.units))
        length = min(map(len, parts), default=1)
        neurons = sum((curve[:length] for curve in parts), torch.zeros(length, dtype=torch.float64))
        heads = [0.0]
        if couplings.heads is not None:
            heads += (orders.known(index, "heads").costs.cumsum(0) / rows).tolist()
        return LayerCurves(neurons.tolist(), heads)

    def _find_orders(self, inputs: LayerInputs, ratio: float, chunk: int) -> dict[Part, Weights]:
        """Eliminate as far as curves reach; the layer with a part of it narrowed, for each part that is judged."""
        layer = LayerReconstruction(self.config, self.options, inputs, chunk)
        before, losses = inputs.shape, self.options.losses
        keep = replace(before, intermediate=kept_neurons(before.intermediate, ratio, self.shape.grain))
        found = dict[Part, Weights]()

        def judge(part: Part) -> None:
            """Silence it while the sums of its order are at hand."""
            if losses and part in losses.judged.parts and (after := losses.judged.widths(part, before)) != before:
                found[part] = layer.silenced(after)

        if layer.couplings.heads is not None:
            layer.head_order(1)
            judge("heads")
        for coupling in layer.couplings.neurons:
            layer.neuron_order(coupling, max(1, self.shape.units(coupling, keep)))
        judge("neurons")
        return found

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Layers (ascending) whose states are at hand together: one for each process."""
        count = self.measurement.team.count
        return (layers[start : start + count] for start in range(0, len(layers), count))

    def start(self, first_layer: int, outputs: Sequence[Output]) -> None:
        """Get ready to follow the outputs whose layers are narrowed."""
        if self.reads_back:
            narrowed = (output for output in outputs if tuple(output.layers) != tuple(self.shape.layers))
            self._followed = {output.work: FoldedStates(self.measurement, output) for output in narrowed}

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """Move the dense states to a group of layers; all processes call this alike."""
        self._read_layer = read_layer
        self._move(self._states, layers, read_layer)
        self._due = list(layers)
        if not self.measurement.team.shard(layers):
            self._follow_to(layers[-1])

    def _follow_to(self, index: int) -> None:
        """Move the folded states to those layers of the group up to one that they have not come to.

        Of several processes each folds a layer of the group and calls this before it refines that, and when it is
        written: layers are fitted at once, and refined in turn.
        """
        while self._due and self._due[0] <= index:
            layer = self._due.pop(0)
            for states in self._followed.values():
                move, team = partial(states.move_to, layer), self.measurement.team
                _, self._chunk = team.with_oom_retry(move, self._chunk, f"layer {layer}")

    def _move(self, states: DenseStates, layers: Sequence[int], read_layer: ReadLayer) -> None:
        move = partial(states.move_to, layers, read_layer)
        _, self._chunk = self.measurement.team.with_oom_retry(move, self._chunk, f"layer {layers[0]}")

    def fold_into(
        self, piece: Piece, weights: Weights, before: LayerShape, outputs: Sequence[Output]
    ) -> Iterator[Folded]:
        """Choose units of a layer or a piece of it, refit their consumers, and refine what is left of the MLP."""
        for output in outputs:
            unchanged = before == output.layers[piece.layer]
            yield (dict(weights), LayerRecord()) if unchanged else self._folded(piece, weights, output)

    def _folded(self, piece: Piece, weights: Weights, output: Output) -> Folded:
        inputs, states = self._inputs(piece, weights), self._followed.get(output.work)

        def attempt(chunk: int) -> Folded:
            def follow(folded: Weights, widths: LayerShape) -> LayerInputs:
                assert states is not None
                self._follow_to(piece.layer)
                return states.inputs(inputs, folded, widths, chunk)

            layer = LayerReconstruction(self.config, self.options, inputs, chunk, follow if states else None)
            return layer.fold(piece, weights, output.layers[piece.layer])

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
        """What the pieces of the layer shared goes, and the states are moved on for other processes."""
        self._around = None
        if self._due:
            self._follow_to(self._due[-1])

    def data_facts(self) -> dict[str, Any]:
        """What the states are, for the report."""
        return self._facts

    @property
    def _measured(self) -> Measurement:
        """What curves are made on: what the losses that they go through are measured on, where there are any."""
        return self.options.losses.streams.measurement if self.options.losses else self.measurement

    @property
    def shape(self) -> "StockShape":
        """The model's shape."""
        return self.measurement.shape


def _resampled(curve: Tensor, scale: float) -> Tensor:
    """A curve by the number of units removed, each of which counts as ``scale`` units."""
    return curve[(torch.arange(round((len(curve) - 1) * scale) + 1) / scale).round().long()]
