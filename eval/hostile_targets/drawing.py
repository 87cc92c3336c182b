"""Inputs of a kind, drawn by hypothesis."""

import contextlib
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import FlakyStrategyDefinition

from hostile_targets.kind import Kind
from hostile_targets.world import World


def draw(world: World, kind: Kind, number: int, count: int, do: Callable[[Any], None]) -> None:
    """Call ``do`` with up to ``count`` inputs, which are those of the seed ``number``."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.drawn(world))
    def each(value: Any) -> None:
        do(value)

    # A choice that hypothesis cannot replay ends its search, not ours.
    with contextlib.suppress(FlakyStrategyDefinition):
        each()
