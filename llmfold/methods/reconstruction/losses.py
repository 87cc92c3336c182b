"""What predictions lose when parts of layers are narrowed, measured in nats on sequences held back.

A curve made on the rows that a layer is fitted to knows neither how the fit does on other rows nor all that later
layers make of an error: on SmolLM2 it tells the first layers from the middle, but finds the last ones harmless
(eval/results/tried.md). Losses of single layers add up, so one measured loss puts the curve of a part on the scale that
all layers share. Those of deeply narrowed MLPs add up to twice what all of them cost at once, and those of heads do
not, so what a part of all layers costs at once puts heads and neurons on the scale that both share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmfold.config import FoldConfig
from llmfold.methods.base import Weights
from llmfold.methods.dense import LayerInputs, Measurement
from llmfold.methods.reconstruction.held import held_back
from llmfold.models import LayerShape, ModelShape
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import HALF, PARTS, Part, judged_neurons
from llmfold.runtime.hidden_states import STATE_FOLDER, chunks, mapped, read, stored_array, write

if TYPE_CHECKING:
    from llmfold.models.context import Ends  # builds on transformers' models

SHARE, TOKENS = 32, 2048
"""One sequence in so many, and this many tokens at least, are carried through the model for each part."""
_ROWS = 128
_ALL = -1
"""In place of a layer's number."""


@dataclass(frozen=True)
class Judged:
    """Which losses settle the widths of a fold.

    Attributes:
        config, shape: options and the dense model's shape.
    """

    config: FoldConfig
    shape: ModelShape

    @cached_property
    def alone(self) -> tuple[Part, ...]:
        """Parts of single layers: where layers may differ."""
        adaptive = self.config.measures and self.config.allocation == "adaptive"
        return () if not adaptive else PARTS if self._split else ("neurons",)

    @cached_property
    def together(self) -> tuple[Part, ...]:
        """Parts of all layers at once: where the plan chooses between them, and no experts are read a few at a time."""
        layers = range(len(self.shape.layers))
        return PARTS if self._split and not any(self.shape.apart(index)[0] for index in layers) else ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that are narrowed."""
        return self.alone or self.together

    def widths(self, part: Part, layer: LayerShape) -> LayerShape:
        """Those of a layer with a part of it narrowed: a group of heads less, or a share of the neurons."""
        if part == "heads":
            folds = self.shape.folds_heads(layer) and layer.head_units > 1
            return layer.with_units(layer.intermediate, layer.head_units - 1) if folds else layer
        share = float(self.config.ratio or 0) if self.alone else HALF
        kept = judged_neurons(layer.intermediate, share, self.shape.grain)
        return replace(layer, intermediate=min(kept, layer.intermediate))

    @property
    def _split(self) -> bool:
        open_split = self.config.measures and self.config.attention_ratio is None
        return open_split and any(map(self.shape.folds_heads, self.shape.layers))


def sequences_carried(sequences: int, length: int) -> int:
    """How many of the sequences that are measured on: of those held back, where there are any."""
    return min(held_back(sequences) or sequences, max(sequences // SHARE, -(-TOKENS // length)))


@dataclass
class Losses:
    """The last sequences, once for every part of every layer of this process, and once for every part of all layers.

    Attributes:
        measurement: what is measured on, sequences of tokens.
        output: reads the end of the model.
        judged: which losses.
    """

    measurement: Measurement
    output: Callable[[], "Ends"]
    judged: Judged
    _carried: dict[tuple[int, Part], np.memmap] = field(default_factory=dict)

    def add(self, group: Sequence[int], own: Mapping[int, tuple[LayerInputs, Mapping[Part, Weights]]]) -> None:
        """Begin with parts of single layers narrowed, and carry what is narrowed in all layers through them.

        Args:
            group: neighbouring layers, which come after those of earlier calls; all processes call this alike.
            own: those of this process, each with the states around it, and with the tensors that it has where a part
                of it is narrowed: as wide as the dense ones, for that is what any stock layer runs.
        """
        for index in group:
            if index in own:
                self._add(*own[index])
            self.measurement.team.wait()  # the next layer may be another process's

    def _add(self, inputs: LayerInputs, narrowed: Mapping[Part, Weights]) -> None:
        index, x = inputs.index, inputs.attended(self._sequences)
        for part in [part for part in self.judged.alone if part in narrowed]:
            self._carried[index, part] = states = mapped(self._path(index, part), tuple(x.shape))
            write(states, slice(None), self.measurement.context.layer(x, narrowed[part], index))
        for part in self.judged.together:
            states = mapped(self._path(_ALL, part), None if index else tuple(x.shape))
            before = read(states, slice(None), self.measurement.device) if index else x
            weights = narrowed.get(part, inputs.weights)
            write(states, slice(None), self.measurement.context.layer(before, weights, index))

    def advance(self, index: int, weights: Weights) -> None:
        """Carry parts of earlier layers through a dense layer, its tensors float32 on the device."""
        measurement = self.measurement
        for (begun, _), states in self._carried.items():
            if begun < index:
                x = read(states, slice(None), measurement.device)
                write(states, slice(None), measurement.context.layer(x, weights, index))

    def finish(self, dense: np.ndarray) -> None:
        """Compare with the dense states (sequences, tokens, hidden) after the last layer; all processes call this."""
        team, carried = self.measurement.team, dict(self._carried)
        if team.is_main:
            carried |= {(_ALL, part): mapped(self._path(_ALL, part), None) for part in self.judged.together}
        ends, losses = self.output(), dict.fromkeys(carried, 0.0)
        for number, sequence in enumerate(range(*self._sequences.indices(len(dense)))):
            whole = read(dense, np.array([sequence]), self.measurement.device).flatten(0, 1)
            for rows in chunks(len(whole), _ROWS):
                expected = ends.logits(whole[rows]).log_softmax(-1)
                for key, states in carried.items():
                    found = ends.logits(read(states[number], rows, self.measurement.device)).log_softmax(-1)
                    losses[key] += float((expected.exp() * (expected - found)).sum(-1).double().sum())
        rows_seen = len(range(*self._sequences.indices(len(dense)))) * dense.shape[1]
        for (begun, part), total in losses.items():
            stored_array(self._result(begun, part), partial(np.array, total / rows_seen))
            self._path(begun, part).unlink()
        self._carried.clear()
        team.wait()

    def loss(self, index: int, part: Part) -> float | None:
        """KL divergence from the dense model in nats a token, None of a part that was not narrowed."""
        return self._stored(index, part)

    def loss_together(self, part: Part) -> float | None:
        """The same with a part of all layers narrowed."""
        return self._stored(_ALL, part)

    def scaled(self, curves: Sensitivities) -> Sensitivities:
        """Curves that predict what was measured: of each layer, and then of all together.

        Heads are never made cheaper beside neurons than they were: MLPs are judged as the closed form leaves them, and
        refined in the fold, which heads are not.
        """
        layers, factors = self.judged.shape.layers, dict[Part, float]()
        for part in PARTS:
            after = [self.judged.widths(part, layer) for layer in layers]
            single = [self._single(part, *each) for each in zip(range(len(layers)), curves.layers, after, strict=True)]
            curves, together = Sensitivities(single), self.loss_together(part)
            if together is not None:
                factors[part] = curves.factor(layers, after, together)
        for part, factor in factors.items():
            curves = curves.scaled(part, max(factors.values()) if part == "heads" else factor)
        return curves

    def _single(self, part: Part, index: int, curves: LayerCurves, after: LayerShape) -> LayerCurves:
        loss = self.loss(index, part)
        if loss is None:
            return curves
        return curves.scaled(part, Sensitivities([curves]).factor([self.judged.shape.layers[index]], [after], loss))

    @property
    def _sequences(self) -> slice:
        sequences, length = self.measurement.size
        return slice(sequences - sequences_carried(sequences, length), sequences)

    def _stored(self, index: int, part: Part) -> float | None:
        path = self._result(index, part)
        return float(np.load(path, allow_pickle=False)) if path.exists() else None

    def _path(self, index: int, part: Part) -> Path:
        return self.measurement.work / STATE_FOLDER / f"narrowed-{_name(index, part)}.npy"

    def _result(self, index: int, part: Part) -> Path:
        return self.measurement.work / STATE_FOLDER / f"loss-{_name(index, part)}.npy"


def _name(index: int, part: Part) -> str:
    return f"all-{part}" if index == _ALL else f"{index:05d}-{part}"
