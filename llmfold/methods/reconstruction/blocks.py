"""Whole blocks taken out: the MLP of the block before gives what both gave, as nearly as its neurons can.

A block that goes leaves the one before it as it is but for the MLP's consumer, which is refit by least squares to add
what the two added. Of neighbours only one goes, so that each that does has a dense one before it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from llmfold.methods.base import ReadLayer, Weights
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement, row_weight
from llmfold.methods.method import Notify
from llmfold.methods.reconstruction.held import split
from llmfold.methods.reconstruction.refitting import RIDGES, consumer_errors
from llmfold.methods.reconstruction.streams import Streams
from llmfold.models import Role, tensor_name
from llmfold.models.shallower import renamed
from llmfold.models.slots import narrowed
from llmfold.repair.least_squares import ProductSums, product_sums
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, read, stored_tensors

_WORD = "block"


@dataclass
class Blocks:
    """Blocks of a model of a registered family, measured on its dense states.

    Attributes:
        measurement: what is measured on, sequences of tokens.
        streams: carry what is left to the end of the model.
        facts: what is measured on, for the report.
    """

    measurement: Measurement
    streams: Streams
    facts: dict[str, Any]
    _chunk: int = CHUNK

    def losses(self, read_layer: ReadLayer, notify: Notify) -> list[float | None]:
        """KL divergence from the dense model in nats a token when one block goes, repaired, on sequences held back.

        None of the first, which has no other before it. All processes call this alike; what was measured is not again.
        """
        known = self._known()
        if None not in known[1:]:
            return known
        states, count = DenseStates(self.measurement), len(self.measurement.shape.layers)
        own, before = set(self.measurement.team.shard(range(1, count))), None
        for index in range(count):
            notify(f"layer {index}: measure")
            inputs = self._around(states, index, read_layer)
            self.streams.advance(index, inputs.weights)
            if before is not None and index in own:
                weights = self._absorbing(before, inputs.after).weights()
                after = self.measurement.context.layer(self.streams.given(before), weights, before.index)
                self.streams.begin(index, _WORD, after)
            before = inputs
        self.streams.finish(states.after(count - 1))
        states.close()
        return self._known()

    def repairs(self, removed: Collection[int], read_layer: ReadLayer, notify: Notify) -> dict[str, Tensor]:
        """Consumers of the blocks before those that go, float32, by the names they have when those are gone.

        All processes call this alike; what was computed once is kept in the work folder.
        """
        states, found = DenseStates(self.measurement), dict[str, Tensor]()
        own = set(self.measurement.team.shard(sorted(removed)))
        for gone in sorted(removed):
            path = self.measurement.work / STATE_FOLDER / f"repair-{gone:05d}.safetensors"
            if not path.exists():
                notify(f"layer {gone - 1}: repair")
                before, inputs = (self._around(states, index, read_layer) for index in (gone - 1, gone))
                if gone in own:
                    stored_tensors(path, self._absorbing(before, inputs.after).repaired)
            self.measurement.team.wait()
            for role, tensor in stored_tensors(path, dict).items():
                found[renamed(tensor_name(gone - 1, role), gone - 1, removed)] = tensor
        states.close()
        return found

    def _known(self) -> list[float | None]:
        return [self.streams.loss(index, _WORD) for index in range(len(self.measurement.shape.layers))]

    def _absorbing(self, before: LayerInputs, after: np.memmap) -> "_Absorbing":
        attempt, team = partial(_Absorbing, before, after), self.measurement.team
        found, self._chunk = team.with_oom_retry(attempt, self._chunk, f"layer {before.index}")
        return found

    def _around(self, states: DenseStates, index: int, read_layer: ReadLayer) -> LayerInputs:
        move = partial(states.move_to, [index], read_layer)
        _, self._chunk = self.measurement.team.with_oom_retry(move, self._chunk, f"layer {index}")
        return states.around(index, self.measurement.wide(read_layer(index)))


class _Absorbing:
    """A dense block whose MLP takes over what the block after it adds."""

    def __init__(self, before: LayerInputs, after: np.memmap, chunk: int) -> None:
        """Find the ridge that rows held back like best.

        Args:
            before: the block.
            after: states after the one that goes, (sequences, tokens, hidden).
            chunk: sequences at once.
        """
        self._layer, self._after = before, after
        (self._coupling,) = before.measurement.shape.couplings(before.shape).neurons
        self._inputs, size = before.neurons_of(self._coupling), before.measurement.size[0]
        fitted, self._held = split(size, chunk)
        self._train = product_sums(map(self._rows, fitted))
        trials = [self._train.added_rows(ridge) for ridge in RIDGES]
        judged = map(self._rows, self._held or fitted)
        errors = consumer_errors([(trial, None) for trial in trials], judged, slice(None))
        self._best = min(range(len(RIDGES)), key=errors.__getitem__)
        self._added = trials[self._best]

    def weights(self) -> Weights:
        """The block's tensors, float32, with what was fitted to the rows that are not held back."""
        shapes = {role: tuple(tensor.shape) for role, tensor in self._layer.weights.items()}
        folded = [(self._coupling.slots, self._consumer(self._added))]
        return narrowed(self._layer.weights, folded, shapes, self._layer.shape)

    def repaired(self) -> dict[Role, Tensor]:
        """The consumer fitted to all rows, float32 on the CPU."""
        sums: ProductSums = self._train
        if self._held:
            sums += product_sums(map(self._rows, self._held))
        consumer = self._consumer(sums.added_rows(RIDGES[self._best]))
        return {role: tensor.cpu() for role, tensor in consumer.items()}

    def _consumer(self, added: Tensor) -> dict[Role, Tensor]:
        role = self._coupling.reader
        return {role: (self._inputs.weights[role] + added.T).contiguous()}

    def _rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Activations (t, n), what the next block adds (t, hidden), and row weights (t,), for some sequences."""
        device = self._layer.measurement.device
        x, _, _ = self._inputs.mlp(part)
        own, wanted = (read(states, part, device).flatten(0, 1) for states in (self._layer.after, self._after))
        return self._inputs.neurons(x), wanted - own, row_weight(wanted)
