"""Hidden states between layers, dense and folded side by side, in files that the kernel may keep in memory or not."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmfold.checkpoint.storage import allocate, disk_full, free_bytes, fsync_path, write_error

STATE_FOLDER = "states"


class HiddenStates:
    """Two streams of hidden states before one layer: of the dense model and of the folded one.

    Each is a mapped float32 file of shape (sequences, tokens, hidden), so a stream of any length costs no anonymous
    memory beyond the chunk at hand, and an interrupted run finds the states of its last whole layer.
    """

    def __init__(self, root: Path, index: int, shape: tuple[int, int, int], *, create: bool) -> None:
        """Open the states before layer ``index`` under the work folder ``root``."""
        self.folder = root / STATE_FOLDER / f"{index:05d}"
        self.index, self.shape, self._root = index, shape, root
        if create:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        size = shape if create else None
        self.dense = mapped(self.folder / "dense.npy", size)
        self.folded = mapped(self.folder / "folded.npy", size)

    def next(self, *, create: bool = True) -> "HiddenStates":
        """Fresh states after this layer, or those that another process has created."""
        return HiddenStates(self._root, self.index + 1, self.shape, create=create)

    def flush(self) -> None:
        """Return once both streams are on disk."""
        for stream in (self.dense, self.folded):
            stream.flush()
        fsync_path(self.folder)
        fsync_path(self.folder.parent)

    def discard(self) -> None:
        """Delete these states."""
        shutil.rmtree(self.folder, ignore_errors=True)


def mapped(path: Path, create: tuple[int, ...] | None) -> np.memmap:
    """Map a float32 file of states: a new one of the shape ``create``, or the one that is there.

    Raises:
        OutputError: the disk has no room: a mapped file with holes would kill the process where it has none.
    """
    if create is None:
        return np.lib.format.open_memmap(path, mode="r+")
    needed = math.prod(create) * 4
    if free_bytes(path.parent) < needed:
        raise disk_full(path.parent, needed - free_bytes(path.parent))
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=create)
    try:
        with path.open("r+b") as file:
            allocate(file.fileno(), path.stat().st_size)
    except OSError as error:
        raise write_error(error, path, needed) from error
    return rows


def stored_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in ``path``; made and stored there, whole or not at all, if it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, make())
        fsync_path(partial)
        partial.rename(path)
        fsync_path(path.parent)
    found: np.ndarray = np.load(path, allow_pickle=False)
    return found


def read(stream: np.ndarray, sequences: slice | np.ndarray, device: torch.device) -> Tensor:
    """Copy some sequences of a stream to the device: (s, tokens, hidden) float32."""
    return torch.from_numpy(np.array(stream[sequences])).to(device)


def write(stream: np.ndarray, sequences: slice, states: Tensor) -> None:
    """Store some sequences of a stream."""
    stream[sequences] = states.float().cpu().numpy()
