"""What is finished of a run, so that a killed one goes on from its last whole unit."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmfold.errors import OutputError, UsageError
from llmfold.runtime.closing import Closing
from llmfold.runtime.storage import fsync_path, pwrite_all, write_error, writing


@dataclass(frozen=True)
class Entry:
    """A finished unit: sha256 hex digests of its tensors by name, and its record for the report."""

    unit: str
    digests: dict[str, str]
    record: dict[str, Any]


def journal_of(path: Path, rank: int) -> Path:
    """Where the process of this rank journals, beside the journal of rank 0 at ``path``."""
    return path if rank == 0 else path.with_name(f"{path.stem}-{rank}{path.suffix}")


class Journal(Closing):
    """An append-only JSON-lines file: first the header (what is being made, from what), then one line per unit.

    One process appends; each process of a run has a file of its own, and :meth:`absorb` joins them. Whatever follows
    the last whole line is discarded on opening: those units are made again.

    Attributes:
        path: the file.
        done: unit -> Entry, in the order of completion.
    """

    def __init__(self, path: Path, fd: int, end: int, done: dict[str, Entry]) -> None:
        """Go on at byte ``end`` of the open file ``fd``; see :meth:`open`."""
        self.path = path
        self.done = done
        self._fd = fd
        self._end = end

    @classmethod
    def open(cls, path: Path, header: dict[str, Any], *, lock: bool = False) -> "Journal":
        """Resume the journal at ``path`` or begin one; ``header`` (JSON values) names options, source and version.

        With ``lock`` no other process can open it so before this one closes it or ends.

        Raises:
            UsageError: the journal there has another header.
            OutputError: the file cannot be read or written.
        """
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror}") from error
        first_line = _line(header)
        stored_header, done, end = _parse(content)
        wanted = json.loads(first_line)
        if stored_header is not None and stored_header != wanted:
            raise UsageError(
                f"a partial run lies at {path.parent} that differs in its {_differences(stored_header, wanted)}: "
                "run as it was run, or pass --overwrite to discard it"
            )
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            if lock:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, end)
        except BlockingIOError as error:
            os.close(fd)
            raise OutputError(
                f"a process of an interrupted run still writes into {path.parent}: end it, and run again"
            ) from error
        except OSError as error:
            raise write_error(error, path, len(first_line)) from error
        journal = cls(path, fd, end, done)
        if stored_header is None:
            journal._write(first_line)
            fsync_path(path.parent)
        return journal

    def append(self, unit: str, digests: dict[str, str], record: dict[str, Any]) -> None:
        """Record that ``unit`` is finished and on the disk; returns when the record is on the disk too.

        Raises:
            OutputError: it could not be written.
        """
        entry = Entry(unit, digests, record)
        self._write(_line(asdict(entry)))
        self.done[unit] = entry

    def absorb(self) -> None:
        """Take over what other processes of this run, or of an interrupted one, have written beside this journal.

        Raises:
            OutputError: one of them is still at it, or a file cannot be read or written.
        """
        header = _parse(self.path.read_bytes())[0]
        for path in self._beside():
            if header is not None and _parse(path.read_bytes())[0] == header:
                with Journal.open(path, header, lock=True) as other:
                    for entry in other.done.values():
                        if entry.unit not in self.done:
                            self.append(entry.unit, entry.digests, entry.record)
            path.unlink()

    def units_beside(self) -> set[str]:
        """Units that other processes have journalled so far."""
        return {unit for path in self._beside() for unit in _parse(path.read_bytes())[1]}

    def _beside(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))

    def close(self) -> None:
        """Close the file; nothing is lost by not calling this."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, line: bytes) -> None:
        with writing(self.path, len(line)):
            pwrite_all(self._fd, line, self._end)
            os.fsync(self._fd)
        self._end += len(line)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of the values that differ, and of those inside them where both have names: ``source, config (ratio)``."""
    words = []
    for name in sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)):
        first, second = one.get(name), other.get(name)
        inside = _differences(first, second) if isinstance(first, dict) and isinstance(second, dict) else ""
        words.append(f"{name} ({inside})" if inside else name)
    return ", ".join(words)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _parse(content: bytes) -> tuple[dict[str, Any] | None, dict[str, Entry], int]:
    """Return the header (None when there is no whole one), the finished units and where the last whole line ends."""
    header: dict[str, Any] | None = None
    done: dict[str, Entry] = {}
    end = 0
    for line in content.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if header is None:
            if not isinstance(value, dict):
                break
            header = value
        else:
            entry = _entry(value)
            if entry is None:
                break
            done[entry.unit] = entry
        end += len(line) + 1
    return header, done, end


def _entry(value: Any) -> Entry | None:
    match value:
        case {"unit": str(unit), "digests": dict(digests), "record": dict(record), **others} if not others:
            return Entry(unit, digests, record)
    return None
