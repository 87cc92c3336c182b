"""One run per output: a file lock that the kernel drops when the process dies."""

from pathlib import Path

from filelock import FileLock, Timeout

from llmfold.errors import OutputError


def acquire_lock(path: Path, busy: str) -> FileLock:
    """Take the lock at ``path``, which :func:`release_lock` gives back.

    Raises:
        OutputError: another process has it, which the sentence ``busy`` says, or the file cannot be made or locked.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(busy) from error
    except OSError as error:
        raise OutputError(f"{path} cannot be created ({error.strerror}): choose another output") from error
    return lock


def release_lock(lock: FileLock) -> None:
    """Remove the file and drop the lock; calling it again does nothing."""
    if lock.is_locked:
        # While it is held: whoever locks the removed file afterwards finds it without a name and makes a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
