"""Which sequences a layer is fitted on, which judge (about an eighth), and which make curves."""

import math

from llmfold.models import ModelShape
from llmfold.runtime.hidden_states import CHUNK, chunks

_SHARE = 0.125
_CURVES, _ROWS_PER_UNIT = 0.25, 8


def held_back(sequences: int) -> int:
    """How many sequences judge ridges, refinements and single layers: whole chunks where there are several."""
    blocks = -(-sequences // CHUNK)
    if blocks > 1:
        return sequences - (blocks - max(1, round(blocks * _SHARE))) * CHUNK
    return max(1, round(sequences * _SHARE)) if sequences > 1 else 0


def split(sequences: int, chunk: int = CHUNK) -> tuple[list[slice], list[slice]]:
    """Chunks of sequences to fit on, and chunks to judge on; a single sequence is only fitted on."""
    fitted = sequences - held_back(sequences)
    judging = [slice(part.start + fitted, part.stop + fitted) for part in chunks(sequences - fitted, chunk)]
    return list(chunks(fitted, chunk)), judging


def corrects(shape: ModelShape, steps: int, sequences: int) -> bool:
    """Whether refinement corrects earlier layers: where each has one MLP, which is added to the states as it is."""
    return shape.architecture.registered and steps > 0 and held_back(sequences) > 0


def sequences_for_curves(sequences: int, length: int, widest: int) -> int:
    """How many sequences make curves that go through measured losses anyway: a quarter of them, in whole chunks.

    Args:
        sequences: all that are measured on.
        length: tokens of each.
        widest: features of the widest consumer, each of which wants some rows.
    """
    rows = max(_CURVES * sequences * length, _ROWS_PER_UNIT * widest)
    return min(sequences, math.ceil(rows / (length * CHUNK)) * CHUNK)
