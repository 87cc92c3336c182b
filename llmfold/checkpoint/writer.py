"""Writing tensors into preplanned shards, each at its own place, from one process or several."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llmfold.checkpoint.blocks import blocks, is_finite
from llmfold.checkpoint.shards import Shard, ShardPlan
from llmfold.checkpoint.weights import INDEX_FILE
from llmfold.errors import OutputError
from llmfold.runtime.closing import Closing
from llmfold.runtime.storage import allocate, disk_full, forget, free_bytes, fsync_path, pwrite_all, writing


@dataclass
class _Begun:
    """What is written of a tensor: entries of its first axis, bytes, and their digest."""

    entries: int = 0
    nbytes: int = 0
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)


class ShardWriter(Closing):
    """Writes the tensors of ``plan`` into ``folder``; one process calls ``create``, any number call ``write``."""

    def __init__(self, plan: ShardPlan, folder: Path) -> None:
        """Set up; no file is opened yet."""
        self._plan = plan
        self._folder = folder
        self._sizes = {shard.name: shard.nbytes for shard in plan.shards}
        self._open: dict[str, int] = {}
        self._begun: dict[str, _Begun] = {}

    def create(self) -> None:
        """Create every shard at its final length with its header, and the index; whole shards of a resumed run stay.

        Raises:
            OutputError: the disk is too full for all of them together, or cannot be written.
        """
        todo = [shard for shard in self._plan.shards if not _is_created(self._folder / shard.name, shard)]
        needed = sum(shard.nbytes - _allocated(self._folder / shard.name) for shard in todo)
        missing = needed - free_bytes(self._folder)
        if missing > 0:
            raise disk_full(self._folder, missing)
        for shard in todo:
            path = self._folder / shard.name
            with writing(path, shard.nbytes):
                _create(path, shard)
        index, content = self._folder / INDEX_FILE, self._plan.index
        with writing(index, len(content or b"")):
            if content is not None:
                index.write_bytes(content)
                fsync_path(index)
            fsync_path(self._folder)

    def write(self, name: str, tensor: Tensor) -> str:
        """Write ``tensor`` (any device, any layout) to its place and return the sha256 hex digest of its bytes.

        Work area: one block; a mapped tensor goes straight from its file to the output.

        Raises:
            OutputError: not in the plan, another dtype or shape than planned, NaN or infinity, or the disk is full.
        """
        return self._write(name, tensor, _Begun(), tuple(tensor.shape)).sha256.hexdigest()

    def append(self, name: str, part: Tensor) -> str | None:
        """Write the next entries of a tensor's first axis; the digest of all of them, as :meth:`write`, with the last.

        Raises:
            OutputError: as :meth:`write` does; more entries than were planned.
        """
        begun = self._begun.pop(name, None) or _Begun()
        begun.entries += len(part)
        place = self._plan.tensors.get(name)
        planned = place.spec.shape[0] if place and place.spec.shape else begun.entries
        self._write(name, part, begun, (max(planned, begun.entries), *part.shape[1:]))
        if begun.entries < planned:
            self._begun[name] = begun
            return None
        return begun.sha256.hexdigest()

    def read(self, name: str) -> Tensor:
        """A copy of a tensor that is written, by this process or by another one; raises OutputError if it cannot be."""
        place = self._plan.tensors[name]
        path, tensor = self._folder / place.shard, torch.empty(place.spec.shape, dtype=place.spec.dtype)
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror}") from error
        return tensor

    def _write(self, name: str, tensor: Tensor, begun: "_Begun", shape: tuple[int, ...]) -> "_Begun":
        """Write behind what has begun; ``shape`` is that of the whole tensor."""
        place = self._plan.tensors.get(name)
        if place is None:
            raise OutputError(f"tensor {name!r} is not in the plan of the output")
        if (tensor.dtype, shape) != (place.spec.dtype, place.spec.shape):
            raise OutputError(
                f"tensor {name!r} is {tensor.dtype} {shape}, but {place.spec.dtype} {place.spec.shape} was planned"
            )
        fd = self._descriptor(place.shard)
        for block in blocks(tensor.detach()):
            if not is_finite(block):
                if block.dtype == torch.float16 and not block.isnan().any():
                    raise OutputError(f"tensor {name!r} overflows float16 and was not written: --dtype bfloat16")
                raise OutputError(f"tensor {name!r} came out with NaN or infinity: it was not written")
            data = block.cpu().view(torch.uint8).numpy().data
            begun.sha256.update(data)
            with writing(self._folder / place.shard, place.spec.nbytes):
                pwrite_all(fd, data, place.offset + begun.nbytes)
            begun.nbytes += data.nbytes
        return begun

    def sync(self) -> None:
        """Return once everything this process wrote is on the disk; raises OutputError when it cannot be.

        What is read later comes from the disk, and the memory that the written bytes took serves the next ones.
        """
        for shard, fd in list(self._open.items()):  # another thread may be opening the next
            with writing(self._folder / shard, self._sizes[shard]):
                os.fsync(fd)
                forget(fd)

    def close(self) -> None:
        """Close the files; written bytes stay, but only ``sync`` makes them durable."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: str) -> int:
        if shard not in self._open:
            path = self._folder / shard
            with writing(path, self._sizes[shard]):
                self._open[shard] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if os.fstat(self._open[shard]).st_size != self._sizes[shard]:
                raise OutputError(f"{path} is not the file that was planned: run again with --overwrite")
        return self._open[shard]


def _is_created(path: Path, shard: Shard) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(shard.header)) == shard.header and path.stat().st_size == shard.nbytes
    except FileNotFoundError:
        return False


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


def _create(path: Path, shard: Shard) -> None:
    # The header goes last: a file with the right header is a file that was created whole.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        allocate(fd, shard.nbytes)
        pwrite_all(fd, shard.header, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
