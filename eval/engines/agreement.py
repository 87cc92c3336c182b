"""Whether an engine's answer agrees with the reference: log-probabilities of its likeliest tokens, and greedy text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from runner import TIE

TOLERANCE = {"float32": 2e-4, "bfloat16": 0.5}
"""Largest difference of a log-probability in nats. Single precision sums in other orders; bfloat16 rounds logits of 8
to 16 in steps of 1/16, and every layer before."""
MEAN_TOLERANCE = {"float32": 3e-5, "bfloat16": 0.1}
"""Of the mean over positions and tokens, which rounding leaves far smaller and a wrong tensor does not."""


@dataclass(frozen=True)
class Agreement:
    """What was compared.

    Attributes:
        largest: difference of a log-probability, nats, over the likeliest tokens of every position.
        mean: of these differences; of a mixture in bfloat16 the median over positions of their means.
        following: the largest over all tokens after the last position, where the engine tells them.
        same: how many of the greedy tokens are equal before the first that is not.
        of: greedy tokens compared.
        tie: whether that one is as likely, so that either may be written and what follows is not compared.
        texts: whether its tokenizer reads the texts alike; None where there are none to compare.
        faults: what is beyond its tolerance, in words.
    """

    largest: float
    mean: float
    following: float | None
    same: int
    of: int
    tie: bool
    texts: bool | None
    faults: tuple[str, ...]


def compare(
    answer: Mapping[str, Any],
    reference: Mapping[str, Any],
    table: np.ndarray,
    dtype: str,
    rounding: float = 1,
    *,
    routed: bool = False,
) -> Agreement:
    """Compare an answer with the reference.

    Args:
        answer: of a runner, without an error.
        reference: of the runner of the reference.
        table: log-probabilities of the reference, positions × vocabulary.
        dtype: of the files, whose tolerance holds. Greedy tokens must be equal in float32 alone: elsewhere close calls
            fall either way.
        rounding: what the tolerances are multiplied by, for models whose activations are large.
        routed: whether the model is a mixture. Rounding to bfloat16 sends a token to another expert now and then, after
            which nothing there agrees: the mean is then that of the middle position, and the largest is not judged.
    """
    stray = routed and dtype != "float32"
    largest_allowed, mean_allowed = rounding * TOLERANCE[dtype], rounding * MEAN_TOLERANCE[dtype]
    places = [np.abs(np.asarray(values) - table[i, np.asarray(ids)]) for i, (ids, values) in enumerate(answer["top"])]
    differences = np.concatenate(places)
    faults = []
    if len(answer["top"]) != len(table) or not np.isfinite(differences).all():
        faults.append("positions are missing or not finite")
    largest = float(differences.max())
    mean = float(np.median([place.mean() for place in places]) if stray else differences.mean())
    if not (stray or largest <= largest_allowed):
        faults.append(f"a log-probability differs by {largest:.2g}, allowed {largest_allowed:g}")
    if not mean <= mean_allowed:
        faults.append(f"log-probabilities differ by {mean:.2g} on average, allowed {mean_allowed:g}")
    following = None
    if answer.get("next") is not None:
        following = float(np.abs(np.asarray(answer["next"]) - table[-1]).max())
        if not (stray or following <= largest_allowed):
            faults.append(f"the next token's log-probabilities differ by {following:.2g}")
    same = _common(answer["greedy"], reference["greedy"])
    tie = _is_tie(answer["greedy"], reference, same)
    if dtype == "float32" and same < len(reference["greedy"]) and not tie:
        faults.append(f"greedy text differs after {same} tokens")
    texts = None
    if isinstance(reference["read"], list) and isinstance(answer["read"], list):
        texts = answer["read"] == reference["read"]
        if not texts:
            faults.append("its tokenizer reads a text otherwise")
    return Agreement(largest, mean, following, same, len(reference["greedy"]), tie, texts, tuple(faults))


def _is_tie(ours: Sequence[int], reference: Mapping[str, Any], place: int) -> bool:
    """Whether what was written at ``place`` is as likely, by the reference, as what that wrote."""
    if place >= min(len(ours), len(reference["greedy"])):
        return False
    told = dict(zip(*reference["among"][place], strict=True))
    mine, theirs = ours[place], reference["greedy"][place]
    return mine in told and theirs in told and abs(told[theirs] - told[mine]) <= TIE


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
