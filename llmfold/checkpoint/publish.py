"""The work folder beside the output: everything is made there and appears at the output path in one rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmfold.checkpoint.journal import Journal, journal_of
from llmfold.checkpoint.lock import acquire_lock, release_lock
from llmfold.checkpoint.preflight import check_apart, check_replaceable, check_writable, is_occupied, resolved
from llmfold.checkpoint.replace import recover, replace_folder
from llmfold.errors import OutputError, UsageError
from llmfold.runtime.closing import Closing
from llmfold.runtime.storage import fsync_path

JOURNAL_FILE = "journal.jsonl"


class WorkFolder(Closing):
    """A locked folder ``.NAME.llmfold-partial`` beside the output ``NAME``; it outlives a killed run.

    Attributes:
        output: where the result will appear, links resolved.
        folder: where to write it until then. Every file in it but the journal is published.
    """

    def __init__(self, output: Path, folder: Path, lock: FileLock | None, overwrite: bool) -> None:
        """Take a folder as it is; see :meth:`open` and :meth:`join`."""
        self.output = output
        self.folder = folder
        self._lock = lock
        self._overwrite = overwrite

    @classmethod
    def open(cls, output: Path, *, overwrite: bool, source: Path) -> "WorkFolder":
        """Check ``output`` with nothing written, then lock it and open its work folder, new or left by a killed run.

        Args:
            output: the folder to make; missing parents are created.
            overwrite: whether an earlier output of llmfold there may be replaced on publication.
            source: the model folder that is read.

        Raises:
            UsageError: the output exists (without ``overwrite``), is a file, was not made by llmfold, or overlaps
                ``source``.
            OutputError: another run works on it, or the place cannot be written.
        """
        output = resolved(output)
        check_apart(output, resolved(source))
        try:
            check_replaceable(output, overwrite)
            check_writable(output.parent)
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(output.parent, error) from error
        busy = f"another llmfold run is writing {output}: wait for it, or choose another output"
        lock = acquire_lock(output.with_name(f".{output.name}.llmfold-lock"), busy)
        work = cls(output, partial_folder(output), lock, overwrite)
        try:
            work._prepare()
        except BaseException as error:
            release_lock(lock)
            if isinstance(error, OSError):
                raise _not_writable(output.parent, error) from error
            raise
        return work

    def _prepare(self) -> None:
        """Undo what a crash left at the output, and have the folder: empty, or with the journal of a partial run."""
        recover(self.output)
        _bring_back_journal(self.folder)
        check_replaceable(self.output, self._overwrite)
        self.folder.mkdir(exist_ok=True)
        if self.folder.is_symlink():
            raise OutputError(f"{self.folder} is a link: remove it")
        # Without a journal nothing says what these files are.
        if not (self.folder / JOURNAL_FILE).exists():
            self.discard()

    @classmethod
    def join(cls, output: Path) -> "WorkFolder":
        """The work folder that rank 0 has opened, for another process of the same run: it writes, no more."""
        output = resolved(output)
        return cls(output, partial_folder(output), None, overwrite=False)

    def join_journal(self, header: dict[str, Any], rank: int) -> Journal:
        """The journal of another rank; ``header`` as rank 0 has it.

        Raises:
            OutputError: a process of an interrupted run still writes it, or it cannot be written.
        """
        return Journal.open(journal_of(self.folder / JOURNAL_FILE, rank), header, lock=True)

    def open_journal(self, header: dict[str, Any]) -> Journal:
        """Resume the journal in the folder, or begin one; see ``Journal.open`` for ``header``.

        With ``overwrite`` a partial run with another header is discarded.

        Raises:
            UsageError: a partial run with another header is there and ``overwrite`` was not given.
            OutputError: the journal cannot be read or written.
        """
        path = self.folder / JOURNAL_FILE
        try:
            journal = Journal.open(path, header)
        except UsageError:
            if not self._overwrite:
                raise
            self.discard()
            journal = Journal.open(path, header)
        journal.absorb()
        return journal

    def discard(self) -> None:
        """Delete everything in the folder, the journal first; the folder and its lock stay.

        Raises:
            OutputError: something could not be deleted.
        """
        try:
            (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be emptied ({error.strerror}): remove it by hand") from error

    def publish(self) -> None:
        """Make the folder durable, take its journal out, rename it to the output and release the lock.

        Raises:
            UsageError: meanwhile something else appeared at the output.
            OutputError: it could not be flushed or renamed; output, folder and journal are as they were before.
        """
        try:
            check_replaceable(self.output, self._overwrite)
            for path in sorted(self.folder.rglob("*")):
                fsync_path(path)
            with _set_aside(self.folder / JOURNAL_FILE, _journal_aside(self.folder)):
                fsync_path(self.folder)
                if is_occupied(self.output):
                    replace_folder(self.folder, self.output)
                else:
                    os.rename(self.folder, self.output)
            fsync_path(self.output.parent)
        except OSError as error:
            raise OutputError(f"{self.output} cannot be put in place ({error.strerror}): choose another") from error
        if self._lock is not None:
            release_lock(self._lock)

    def close(self) -> None:
        """Release the lock; an unfinished run stays for the next to resume, an empty folder goes."""
        if self._lock is None:
            return
        if self._lock.is_locked and self.folder.is_dir() and not is_occupied(self.folder):
            self.folder.rmdir()
        release_lock(self._lock)


@contextmanager
def _set_aside(journal: Path, aside: Path) -> Iterator[None]:
    """Move the journal away for the time of the body, back if it fails, and delete it if it does not."""
    if journal.exists():
        os.rename(journal, aside)
    try:
        yield
    except OSError:
        if aside.exists():
            os.rename(aside, journal)
        raise
    aside.unlink(missing_ok=True)


def partial_folder(output: Path) -> Path:
    """Where ``output``, links resolved, is made."""
    return output.with_name(f".{output.name}.llmfold-partial")


def _journal_aside(folder: Path) -> Path:
    """Where the journal of a work folder waits while the folder is renamed; it tells which folder that was."""
    return folder.with_name(f"{folder.name}-journal-{folder.stat().st_ino}")


def _bring_back_journal(folder: Path) -> None:
    """Undo what a crash inside ``publish`` left: the journal goes back to its folder, or goes if that was published."""
    for aside in folder.parent.glob(f"{escape(folder.name)}-journal-*"):
        if folder.is_dir() and aside == _journal_aside(folder) and not (folder / JOURNAL_FILE).exists():
            os.rename(aside, folder / JOURNAL_FILE)
        else:
            aside.unlink()


def _not_writable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder} cannot be written ({error.strerror}): choose another output")
