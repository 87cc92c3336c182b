"""Hidden states and other tensors of a run in files of its work folder, which the kernel may keep in memory or not."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmfold.runtime.storage import allocate, disk_full, free_bytes, replacing, writing

STATE_FOLDER = "states"
CHUNK = 8
"""Sequences that are worked on at once."""


def chunks(sequences: int, size: int = CHUNK) -> Iterator[slice]:
    """Fixed blocks of sequences, in order: every sum runs over them."""
    for start in range(0, sequences, size):
        yield slice(start, min(start + size, sequences))


def mapped(path: Path, create: tuple[int, ...] | None) -> np.memmap:
    """Map a float32 file of states: a new one of the shape ``create``, or the one that is there.

    Raises:
        OutputError: the disk has no room: a mapped file with holes would kill the process where it has none.
    """
    if create is None:
        return np.lib.format.open_memmap(path, mode="r+")
    _check_room(path, math.prod(create) * 4)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=create)
    _allocate(path, path.stat().st_size)
    return rows


def mapped_tensor(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor, not initialised, that lies in a new file; raises OutputError as :func:`mapped`."""
    count = math.prod(shape)
    path.unlink(missing_ok=True)
    _check_room(path, count * dtype.itemsize)
    path.touch()
    _allocate(path, count * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(*shape)


def _check_room(path: Path, needed: int) -> None:
    if free_bytes(path.parent) < needed:
        raise disk_full(path.parent, needed - free_bytes(path.parent))


def _allocate(path: Path, size: int) -> None:
    with writing(path, size), path.open("r+b") as file:
        allocate(file.fileno(), size)


def stored_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in ``path``; made and stored there, whole or not at all, if it is not there yet."""

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, make())

    _store_once(path, save)
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def stored_tensors(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in ``path``; made and stored there, whole or not at all, if they are not there yet."""
    _store_once(path, lambda partial: save_file(make(), partial))
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _store_once(path: Path, save: Callable[[Path], None]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save(partial)


def read(stream: np.ndarray, sequences: slice | np.ndarray, device: torch.device) -> Tensor:
    """Copy some sequences of a stream to the device: (s, tokens, hidden) float32."""
    return torch.from_numpy(np.array(stream[sequences])).to(device)


def write(stream: np.ndarray, sequences: slice, states: Tensor) -> None:
    """Store some sequences of a stream."""
    stream[sequences] = states.float().cpu().numpy()
