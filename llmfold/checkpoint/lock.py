"""One run per output: an advisory lock that the kernel drops when the process dies."""

import fcntl
import os
from pathlib import Path

from llmfold.errors import OutputError


class FileLock:
    """An exclusive lock held through an open file; the file goes away on release."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path, busy: str) -> "FileLock":
        """Take the lock at ``path`` or raise OutputError with the sentence ``busy`` when another process has it.

        Raises:
            OutputError: taken, or the file cannot be made or locked.
        """
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                raise OutputError(f"{path} cannot be created ({error.strerror}): choose another output") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A holder that released in between has unlinked the file that was opened here.
                if _is_still_there(path, fd):
                    return cls(path, fd)
                os.close(fd)
            except BlockingIOError as error:
                os.close(fd)
                raise OutputError(busy) from error
            except OSError as error:
                os.close(fd)
                raise OutputError(f"{path} cannot be locked ({error.strerror}): choose another output") from error

    @property
    def held(self) -> bool:
        """Whether ``release`` has not been called yet."""
        return self._fd >= 0

    def release(self) -> None:
        """Remove the file and drop the lock; calling it again does nothing."""
        if self.held:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def _is_still_there(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
