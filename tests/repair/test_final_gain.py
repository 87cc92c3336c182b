"""Refit of the final gain: convex, exact where it can be, never worse on what it has not seen."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from llmfold.repair.final_gain import Pair, divergence, refit_gain

from llmfold.methods.output import Output


def output(vocabulary: int = 40, hidden: int = 8) -> Output:
    generator = torch.Generator().manual_seed(0)
    gain = 1 + 0.2 * torch.randn(hidden, generator=generator)
    return Output(gain, torch.randn(vocabulary, hidden, generator=generator), 1e-6)


def pairs(distort: torch.Tensor, noise: float, seed: int) -> Iterator[Pair]:
    """Four blocks of dense rows, and folded ones that are those times ``distort`` plus noise."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        dense = torch.randn(64, len(distort), generator=generator)
        yield Pair(dense * distort + noise * torch.randn(dense.shape, generator=generator), dense)


def test_a_scale_per_channel_is_undone() -> None:
    head = output()
    distort = torch.linspace(0.7, 1.4, len(head.gain))
    gain, trace = refit_gain(head.gain, head, partial(pairs, distort, 0.0, 1), partial(pairs, distort, 0.0, 2))
    assert trace[-1] < 0.02 * trace[0]
    torch.testing.assert_close(gain * distort, head.gain, rtol=0.1, atol=0.05)


def test_noise_shrinks_the_gain_and_held_back_divergence_falls() -> None:
    head, one = output(), torch.ones(8)
    gain, trace = refit_gain(head.gain, head, partial(pairs, one, 0.5, 1), partial(pairs, one, 0.5, 2))
    assert len(trace) > 1
    assert all(later < earlier for earlier, later in pairwise(trace))
    assert gain.norm() < head.gain.norm()


def test_nothing_to_repair_leaves_the_gain_alone() -> None:
    head, one = output(), torch.ones(8)
    gain, trace = refit_gain(head.gain, head, partial(pairs, one, 0.0, 1), partial(pairs, one, 0.0, 2))
    torch.testing.assert_close(gain, head.gain, rtol=1e-3, atol=1e-3)
    assert trace[-1] < 1e-6


def test_the_divergence_is_that_of_the_definition() -> None:
    head, one = output(), torch.ones(8)
    pair = next(pairs(one, 0.3, 3))
    p = (pair.dense * head.gain @ head.table.T).softmax(-1).double()
    q = (pair.folded @ head.table.T).softmax(-1).double()
    found = divergence(one, head.gain, lambda: iter([pair]), head)
    torch.testing.assert_close(found, float((p * (p / q).log()).sum(1).mean()), rtol=1e-4, atol=1e-6)
