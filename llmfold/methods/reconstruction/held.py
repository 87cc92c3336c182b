"""Which sequences a layer is fitted on, and which judge: about an eighth, the last ones, held back."""

from llmfold.runtime.hidden_states import CHUNK, chunks

_SHARE = 0.125


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
