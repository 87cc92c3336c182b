"""Messy checkpoints, composed at random: a small sound model, and two to five of the faults that real folders have.

A fault is a kind and the number of one of its values, so that a composition is plain data: printed, stored in a file of
cases, and made again from either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from support import FAMILIES

from messy.draft import Base
from messy.faults import GRAVE, KINDS, LIGHT
from messy.faults.kind import Kind

Fault = tuple[str, int]


@dataclass(frozen=True)
class Composition:
    """A sound model and the faults that are put into it, in their order."""

    base: Base
    faults: tuple[Fault, ...]

    def write(self, folder: Path) -> Path:
        """Make the messy checkpoint."""
        draft = self.base.draft()
        for kind, number in self.faults:
            KINDS[kind].apply(draft, KINDS[kind].values[number])
        return draft.write(folder)

    def to_json(self) -> dict[str, Any]:
        """As a file of cases keeps it."""
        return {"base": [self.base.family, self.base.tied, self.base.dtype], "faults": [list(f) for f in self.faults]}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Composition":
        """From :meth:`to_json`."""
        return cls(Base(*stored["base"]), tuple((str(kind), int(number)) for kind, number in stored["faults"]))


def _faults(kinds: Mapping[str, Kind]) -> st.SearchStrategy[Fault]:
    every = [(kind, number) for kind, each in kinds.items() for number in range(len(each.values))]
    by_kind = st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.integers(0, len(kinds[kind].values) - 1))
    )
    return by_kind | st.sampled_from(every)


@st.composite
def compositions(draw: st.DrawFn) -> Composition:
    """Two to five faults in a model of any family; every other composition has grave ones among them."""
    base = Base(
        draw(st.sampled_from(FAMILIES)), draw(st.booleans()), draw(st.sampled_from(("float32", "float32", "bfloat16")))
    )
    grave = draw(st.lists(_faults(GRAVE), max_size=2, unique=True)) if draw(st.booleans()) else []
    light = draw(st.lists(_faults(LIGHT), min_size=max(0, 2 - len(grave)), max_size=5 - len(grave), unique=True))
    return Composition(base, tuple(draw(st.permutations([*light, *grave]))))
