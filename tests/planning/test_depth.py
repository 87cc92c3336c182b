"""Which blocks go: the cheapest that are no neighbours, against all sets of blocks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfold.errors import UsageError
from llmfold.planning.depth import best_blocks, cheapest_blocks, removal_words

LOSSES = st.lists(st.none() | st.integers(0, 20).map(float), min_size=1, max_size=9).map(lambda found: [None, *found])


def sets(losses: list[float | None], count: int) -> list[tuple[int, ...]]:
    """All sets of blocks that may go together."""
    able = [index for index, loss in enumerate(losses) if loss is not None]
    found = itertools.combinations(able, count)
    return [blocks for blocks in found if all(b - a > 1 for a, b in itertools.pairwise(blocks))]


def total(losses: list[float | None], blocks: tuple[int, ...]) -> float:
    return sum(losses[index] or 0.0 for index in blocks)


@given(losses=LOSSES, count=st.integers(0, 6))
def test_no_other_set_is_cheaper(losses: list[float | None], count: int) -> None:
    able = sets(losses, count)
    if not able:
        most = max(n for n in range(len(losses)) if sets(losses, n))
        with pytest.raises(
            UsageError, match=f"--depth {count} cannot be met: .* at most {most} of these {len(losses)}"
        ):
            cheapest_blocks(losses, count)
        return
    found = cheapest_blocks(losses, count)
    assert found in able
    assert total(losses, found) == min(total(losses, blocks) for blocks in able)


@given(losses=LOSSES, prices=st.lists(st.integers(0, 30).map(float), min_size=6, max_size=6), most=st.integers(0, 5))
def test_the_number_of_blocks_loses_least_together_with_the_widths(
    losses: list[float | None], prices: list[float], most: int
) -> None:
    def error(blocks: tuple[int, ...]) -> float:
        if len(blocks) > most:
            raise UsageError("these are more than is to go")
        return prices[len(blocks)]

    possible = [cheapest_blocks(losses, n) for n in range(most + 1) if sets(losses, n)]
    found = best_blocks(losses, error)
    assert found in possible
    assert total(losses, found) + error(found) == min(total(losses, each) + error(each) for each in possible)


def test_blocks_are_named() -> None:
    assert removal_words([3], 6) == "block 3 of 6 is gone as a whole"
    assert removal_words([1, 3, 5], 6) == "blocks 1, 3 and 5 of 6 are gone as a whole"
