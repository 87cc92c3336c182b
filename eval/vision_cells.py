"""Cells of the tables of vision: what was measured of one folded network, and what such measurements say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "vision"
STAGES = ("layer1", "layer2", "layer3")
OURS = "self"
NAMES = {
    **{"none": "", "variance": " + AR", "inverted": " + DIR", "data": " + REPAIR, 500 real images"},
    **{
        OURS: "self (ours)",
        "paper": "fold",
        "ifm": "IFM",
        "inn": "INN",
        "magnitude-l1": "magnitude L1",
        "magnitude-l2": "magnitude L2",
    },
}
RESAMPLES = 2000


@dataclass(frozen=True)
class Cell:
    """One network to measure."""

    method: str
    repair: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """In the file of results."""
        return f"{self.method}|{self.repair}|{self.rate:g}|{self.seed}"

    @classmethod
    def parsed(cls, key: str) -> "Cell":
        """From a key."""
        method, repair, rate, seed = key.split("|")
        return cls(method, repair, float(rate), int(seed))

    @property
    def uses_data(self) -> bool:
        """Whether it has seen images of the data set."""
        return self.repair == "data"

    @property
    def name(self) -> str:
        """In tables."""
        if self.method == OURS:
            return f"**{NAMES[OURS]}**" if self.repair == "none" else "self on 500 real images"
        return NAMES[self.method] + NAMES[self.repair]


def correct(found: Mapping[str, Any]) -> NDArray[np.float64]:
    """(images,) ones where a network is right."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(found["correct"]), np.uint8)).astype(np.float64)[:1500]


def accuracy(found: Mapping[str, Any]) -> float:
    """Share of images."""
    return float(correct(found).mean())


def interval(one: NDArray[np.float64], other: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % of the bootstrap's differences of mean accuracy, over the same images drawn for both."""
    difference = one - other
    drawn = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)
