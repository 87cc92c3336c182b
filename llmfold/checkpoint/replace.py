"""Putting one folder in the place of another so that a crash at any moment leaves one whole folder to be found."""

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def old_sibling(output: Path) -> Path:
    """Return where the folder being replaced waits while ``output`` is absent for a moment."""
    return output.with_name(f".{output.name}.llmfold-old")


def replace_folder(new: Path, output: Path) -> None:
    """Rename ``new`` to ``output`` and delete the folder that was there; raises OSError with ``output`` still whole.

    The two are exchanged in one step where the kernel and the file system can; elsewhere the old one is set aside
    first and ``recover`` undoes what a crash left. What of the old folder cannot be deleted is left to the next run.
    """
    if _exchange(new, output):
        shutil.rmtree(new, ignore_errors=True)
        return
    old = old_sibling(output)
    os.rename(output, old)
    try:
        os.rename(new, output)
    except OSError:
        os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(output: Path) -> None:
    """Undo what a crash inside ``replace_folder`` left: put the old folder back, or delete it; raises OSError."""
    old = old_sibling(output)
    if not old.exists():
        return
    if output.is_dir() and any(output.iterdir()):
        shutil.rmtree(old)
    else:
        os.rename(old, output)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False where that cannot be done, OSError where it failed."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if rename(*paths, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code))
