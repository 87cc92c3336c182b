"""What predictions lose when a part of one layer alone is narrowed, measured in nats on sequences held back.

A curve made on the rows that a layer is fitted to knows neither how the fit does on other rows nor all that later
layers make of an error: on SmolLM2 it tells the first layers from the middle, but finds the last ones harmless
(eval/results/tried.md). Losses of single layers add up, so one measured loss puts the curve of a part on the scale that
all parts share.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.methods.dense import LayerInputs, Measurement
from llmfold.methods.reconstruction.held import held_back
from llmfold.methods.reconstruction.importance import Part
from llmfold.models import LayerShape, Role
from llmfold.runtime.hidden_states import STATE_FOLDER, chunks, mapped, read, stored_array, write

if TYPE_CHECKING:
    from llmfold.models.context import Ends  # builds on transformers' models

SHARE, TOKENS = 32, 2048
"""One sequence in so many, and this many tokens at least, are carried through the model for each part of each layer."""
_ROWS = 128


def parts_judged(config: FoldConfig) -> tuple[Part, ...]:
    """Parts of every layer whose losses settle its widths: none where all layers alike, heads where not given."""
    if config.allocation != "adaptive":
        return ()
    return ("neurons",) if config.attention_ratio is not None else ("neurons", "heads")


def sequences_carried(sequences: int, length: int) -> int:
    """How many of the sequences that are measured on: of those held back, where there are any."""
    return min(held_back(sequences) or sequences, max(sequences // SHARE, -(-TOKENS // length)))


@dataclass
class SingleLosses:
    """The last sequences, once for every part of every layer of this process, that part alone being narrowed.

    Attributes:
        measurement: what is measured on, sequences of tokens.
        output: reads the end of the model.
    """

    measurement: Measurement
    output: Callable[[], "Ends"]
    _carried: dict[tuple[int, Part], np.memmap] = field(default_factory=dict)

    def add(self, part: Part, inputs: LayerInputs, narrowed: dict[Role, Tensor], widths: LayerShape) -> None:
        """Begin with a layer narrowed to ``widths``, its tensors as stored."""
        measurement, index = self.measurement, inputs.index
        x, weights = inputs.attended(self._sequences), measurement.wide(narrowed)
        states = mapped(self._path(index, part), tuple(x.shape))
        write(states, slice(None), measurement.context.layer(x, weights, index, widths))
        self._carried[index, part] = states

    def advance(self, index: int, weights: dict[Role, Tensor]) -> None:
        """Carry all that was added in earlier layers through a dense layer, its tensors float32 on the device."""
        measurement = self.measurement
        for (begun, _), states in self._carried.items():
            if begun < index:
                x = read(states, slice(None), measurement.device)
                write(states, slice(None), measurement.context.layer(x, weights, index))

    def finish(self, dense: np.ndarray) -> None:
        """Compare with the dense states (sequences, tokens, hidden) after the last layer; all processes call this."""
        ends, losses = self.output(), dict.fromkeys(self._carried, 0.0)
        for number, sequence in enumerate(range(*self._sequences.indices(len(dense)))):
            whole = read(dense, np.array([sequence]), self.measurement.device).flatten(0, 1)
            for rows in chunks(len(whole), _ROWS):
                expected = ends.logits(whole[rows]).log_softmax(-1)
                for key, states in self._carried.items():
                    found = ends.logits(read(states[number], rows, self.measurement.device)).log_softmax(-1)
                    losses[key] += float((expected.exp() * (expected - found)).sum(-1).double().sum())
        rows_seen = len(range(*self._sequences.indices(len(dense)))) * dense.shape[1]
        for (index, part), total in losses.items():
            stored_array(self._result(index, part), partial(np.array, total / rows_seen))
            self._path(index, part).unlink()
        self._carried.clear()
        self.measurement.team.wait()

    def loss(self, index: int, part: Part) -> float | None:
        """KL divergence from the dense model in nats a token, None of a part that was not added."""
        path = self._result(index, part)
        return float(np.load(path, allow_pickle=False)) if path.exists() else None

    @property
    def _sequences(self) -> slice:
        sequences, length = self.measurement.size
        return slice(sequences - sequences_carried(sequences, length), sequences)

    def _path(self, index: int, part: Part) -> Path:
        return self.measurement.work / STATE_FOLDER / f"single-{index:05d}-{part}.npy"

    def _result(self, index: int, part: Part) -> Path:
        return self.measurement.work / STATE_FOLDER / f"loss-{index:05d}-{part}.npy"
