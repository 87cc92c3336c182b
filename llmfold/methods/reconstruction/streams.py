"""Sequences held back, carried through the dense model from where something in it was changed, and what that costs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from llmfold.methods.base import Weights
from llmfold.methods.dense import LayerInputs, Measurement
from llmfold.methods.reconstruction.held import held_back
from llmfold.runtime.hidden_states import STATE_FOLDER, chunks, mapped, read, stored_array, write

if TYPE_CHECKING:
    from llmfold.models.context import Ends  # builds on transformers' models

SHARE, TOKENS = 32, 2048
"""One sequence in so many, and this many tokens at least, are carried through the model for each change."""
ALL = -1
"""In place of a layer's number, of what is changed in all layers."""
_ROWS = 128


def sequences_carried(sequences: int, length: int) -> int:
    """How many of the sequences that are measured on: of those held back, where there are any."""
    return min(held_back(sequences) or sequences, max(sequences // SHARE, -(-TOKENS // length)))


@dataclass
class Streams:
    """The last sequences, once for every change, which is named by a layer and a word.

    Attributes:
        measurement: what is measured on, sequences of tokens.
        output: reads the end of the model.
    """

    measurement: Measurement
    output: Callable[[], "Ends"]
    _carried: dict[tuple[int, str], np.memmap] = field(default_factory=dict)

    def given(self, inputs: LayerInputs) -> Tensor:
        """What the sequences hold before a dense layer, (sequences, tokens, hidden)."""
        return inputs.attended(self._sequences)

    def begin(self, index: int, word: str, states: Tensor) -> None:
        """Carry on from states after a layer."""
        self._carried[index, word] = mapped(self._path(index, word), tuple(states.shape))
        write(self._carried[index, word], slice(None), states)

    def advance(self, index: int, weights: Weights) -> None:
        """Carry what began in earlier layers through a dense layer, its tensors float32 on the device."""
        for (begun, _), states in self._carried.items():
            if begun < index:
                x = read(states, slice(None), self.measurement.device)
                write(states, slice(None), self.measurement.context.layer(x, weights, index))

    def advance_all(self, index: int, word: str, weights: Weights, given: Tensor) -> None:
        """Carry what is changed in all layers through one of them, from what the dense model is ``given`` on."""
        states = mapped(self._path(ALL, word), None if index else tuple(given.shape))
        x = read(states, slice(None), self.measurement.device) if index else given
        write(states, slice(None), self.measurement.context.layer(x, weights, index))

    def finish(self, dense: np.ndarray, in_all: Iterable[str] = ()) -> None:
        """Compare with the dense states (sequences, tokens, hidden) after the last layer; all processes call this.

        Args:
            dense: those states.
            in_all: words of what is changed in all layers, which the main process compares.
        """
        team, carried = self.measurement.team, dict(self._carried)
        if team.is_main:
            carried |= {(ALL, word): mapped(self._path(ALL, word), None) for word in in_all}
        ends, losses = self.output(), dict.fromkeys(carried, 0.0)
        for number, sequence in enumerate(range(*self._sequences.indices(len(dense)))):
            whole = read(dense, np.array([sequence]), self.measurement.device).flatten(0, 1)
            for rows in chunks(len(whole), _ROWS):
                expected = ends.logits(whole[rows]).log_softmax(-1)
                for key, states in carried.items():
                    found = ends.logits(read(states[number], rows, self.measurement.device)).log_softmax(-1)
                    losses[key] += float((expected.exp() * (expected - found)).sum(-1).double().sum())
        rows_seen = len(range(*self._sequences.indices(len(dense)))) * dense.shape[1]
        for key, total in losses.items():
            stored_array(self._result(*key), partial(np.array, total / rows_seen))
            self._path(*key).unlink()
        self._carried.clear()
        team.wait()

    def loss(self, index: int, word: str) -> float | None:
        """KL divergence from the dense model in nats a token, None of what was not carried."""
        path = self._result(index, word)
        return float(np.load(path, allow_pickle=False)) if path.exists() else None

    @property
    def _sequences(self) -> slice:
        sequences, length = self.measurement.size
        return slice(sequences - sequences_carried(sequences, length), sequences)

    def _path(self, index: int, word: str) -> Path:
        return self.measurement.work / STATE_FOLDER / f"narrowed-{_name(index, word)}.npy"

    def _result(self, index: int, word: str) -> Path:
        return self.measurement.work / STATE_FOLDER / f"loss-{_name(index, word)}.npy"


def _name(index: int, word: str) -> str:
    return f"all-{word}" if index == ALL else f"{index:05d}-{word}"
