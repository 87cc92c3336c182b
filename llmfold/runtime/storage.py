"""Durable bytes on a disk that may be full: positional writes, fsync and one-sentence reasons."""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmfold.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def free_bytes(path: Path) -> int:
    """Return the bytes an ordinary user may still write on the disk that holds, or will hold, ``path``."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` (bytes) at ``offset`` of the open file ``fd``; raises OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def allocate(fd: int, nbytes: int) -> None:
    """Give the file ``fd`` its final length, reserving the blocks where the file system can; raises OSError."""
    if sys.platform == "linux":
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in _NO_PREALLOCATION:
                raise
    os.ftruncate(fd, nbytes)


def forget(fd: int) -> None:
    """Let the system drop what its cache holds of the open file ``fd`` and the disk does too, where it takes advice."""
    if sys.platform == "linux":
        with suppress(OSError):  # a file system without advice keeps its cache
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block another file to write, which takes the place of ``path`` on the disk whole or not at all.

    Raises:
        OSError: it cannot be flushed or renamed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        fsync_path(partial)
        os.replace(partial, path)
        fsync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file whole or not at all, in place of what stands there; raises OSError.

    Lone surrogates, which UTF-8 does not have, are spelled as JSON spells them.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def replace_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file of JSON, as :func:`replace_text` does."""
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file of any size; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def disk_full(folder: Path, missing: int) -> OutputError:
    """Return the error for a disk that lacks ``missing`` bytes for what goes into ``folder``."""
    return OutputError(
        f"the disk that holds {folder} is full: free {missing} bytes and run the same command again: it resumes"
    )


def write_error(error: OSError, path: Path, nbytes: int) -> OutputError:
    """Return the error for ``error``, which came while writing ``nbytes`` to ``path``."""
    if error.errno in _FULL:
        return disk_full(path.parent, max(1, nbytes - free_bytes(path)))
    if error.errno == errno.EFBIG:
        return OutputError(f"{path} may not grow to {nbytes} bytes here: use a smaller maximum shard size")
    return OutputError(f"{path} cannot be written ({error.strerror}): check the disk, or choose another output folder")


@contextmanager
def writing(path: Path, nbytes: int) -> Iterator[None]:
    """Turn an OSError of a block that writes ``nbytes`` to ``path`` into the OutputError of :func:`write_error`."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path, nbytes) from error


def write_text(path: Path, text: str) -> None:
    """:func:`replace_text` for a file that the user asked for.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        replace_text(path, text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
