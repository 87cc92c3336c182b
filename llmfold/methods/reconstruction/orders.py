"""Orders in which units go, kept in the work folder: the fold takes up those found before on as many sequences."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from llmfold.methods.dense import Measurement
from llmfold.runtime.hidden_states import STATE_FOLDER, stored_tensors
from llmfold.selection.elimination import Elimination


@dataclass(frozen=True)
class Orders:
    """Eliminations by layer and part of it.

    Attributes:
        work: the work folder.
        sequences: that they were measured on; those of fewer are others.
    """

    work: Path
    sequences: int

    @classmethod
    def of(cls, measurement: Measurement) -> "Orders":
        """Those that are found by a measurement."""
        return cls(measurement.work, measurement.size[0])

    def known(self, index: int, part: str) -> Elimination:
        """One that was found, as far as it went."""
        return Elimination(**load_file(self._path(index, part)))

    def find(self, index: int, part: str, keep: int, eliminate: Callable[[], Elimination]) -> Elimination:
        """Elimination down to ``keep``, from the file of one that went as far or farther where there is one."""
        path = self._path(index, part)
        if path.exists() and len(self.known(index, part).kept) > keep:
            path.unlink()
        order = Elimination(**stored_tensors(path, lambda: dict(vars(eliminate()))))
        units = len(order.kept) + len(order.removed)
        return Elimination.of(units, order.removed[: units - keep], order.costs[: units - keep])

    def _path(self, index: int, part: str) -> Path:
        return self.work / STATE_FOLDER / f"order-{index:05d}-{part}-{self.sequences}.safetensors"
