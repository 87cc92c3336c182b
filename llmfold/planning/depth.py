"""Which blocks of a model go as a whole, and how many."""

from collections.abc import Callable, Sequence

from llmfold.errors import UsageError

Losses = Sequence[float | None]
"""What predictions lose when a block goes, by its number; None where it cannot."""


def removal_words(removed: Sequence[int], count: int) -> str:
    """``blocks 6 and 10 of 30 are gone as a whole``, as numbered in the model that was read, from 0."""
    *first, last = map(str, removed)
    named = f"blocks {', '.join(first)} and {last}" if first else f"block {last}"
    return f"{named} of {count} {'are' if first else 'is'} gone as a whole"


def cheapest_blocks(losses: Losses, count: int) -> tuple[int, ...]:
    """The blocks, no two of them neighbours, whose losses add up to least; ascending.

    Args:
        losses: by block.
        count: how many go.

    Raises:
        UsageError: there are not so many.
    """
    best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}, {0: (0.0, ())}]
    for index, loss in enumerate(losses):  # by how many have gone of the blocks before
        found = dict(best[-1])
        if loss is not None:
            for gone, (total, blocks) in best[-2].items():
                with_it = (total + loss, (*blocks, index))
                found[gone + 1] = min(found.get(gone + 1, with_it), with_it)
        best.append(found)
    if count not in best[-1]:
        raise UsageError(
            f"--depth {count} cannot be met: of neighbours only one block goes and the first stays, so at most "
            f"{max(best[-1])} of these {len(losses)} do"
        )
    return best[-1][count][1]


def best_blocks(losses: Losses, error: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The cheapest blocks of the number that loses least together with the widths that make up the rest.

    Args:
        losses: by block.
        error: predicted of those widths, in the same unit, once some blocks have gone; UsageError where none do.
    """
    best: tuple[int, ...] = ()
    least = error(best)
    for count in range(1, len(losses)):
        try:
            blocks = cheapest_blocks(losses, count)
            lost = sum(losses[index] or 0.0 for index in blocks) + error(blocks)
        except UsageError:  # there are no more, or they are more than is to go
            break
        if lost < least:
            best, least = blocks, lost
    return best
