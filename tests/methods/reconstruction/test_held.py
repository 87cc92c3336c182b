"""Which sequences are fitted on, which judge, and which make curves."""

from hypothesis import given
from hypothesis import strategies as st

from llmfold.methods.reconstruction.held import held_back, sequences_for_curves, split
from llmfold.runtime.hidden_states import CHUNK

SEQUENCES, LENGTHS, WIDEST = st.integers(1, 2_000), st.integers(2, 2_048), st.integers(1, 20_000)


@given(SEQUENCES)
def test_all_sequences_are_fitted_on_or_judge_and_none_does_both(sequences: int) -> None:
    fitted, judging = split(sequences)
    seen = [number for part in (*fitted, *judging) for number in range(part.start, part.stop)]
    assert seen == list(range(sequences))
    assert sum(part.stop - part.start for part in judging) == held_back(sequences) < sequences


@given(SEQUENCES, LENGTHS, WIDEST)
def test_curves_are_made_on_a_quarter_that_tells_all_units_apart(sequences: int, length: int, widest: int) -> None:
    some = sequences_for_curves(sequences, length, widest)
    assert some == sequences or (some % CHUNK == 0 and some < sequences)
    assert some >= sequences / 4
    assert some == sequences or some * length >= 8 * widest
    needed = max(sequences * length / 4, 8 * widest)
    assert some * length < needed + CHUNK * length


@given(SEQUENCES, LENGTHS, WIDEST)
def test_more_sequences_never_leave_fewer_for_curves(sequences: int, length: int, widest: int) -> None:
    assert sequences_for_curves(sequences, length, widest) <= sequences_for_curves(sequences + 1, length, widest)
