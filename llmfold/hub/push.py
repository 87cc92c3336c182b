"""Pushing a finished output to the hub.

``upload_folder`` of huggingface_hub does the work: it leaves nothing in the folder, and what a broken push left on the
hub (whole files, or chunks of them where the hub speaks Xet) is not sent again.
"""

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from llmfold.checkpoint import JOURNAL_FILE, MARKER_FILE, Checkpoint
from llmfold.checkpoint.base_card import CARD_FILE
from llmfold.errors import CheckpointError, HubError, OutputError, UsageError
from llmfold.folder_files import regular_file
from llmfold.hub.errors import explain, is_transient
from llmfold.records.fold import REPORT_FILE, FoldRecord
from llmfold.records.saved import load_record
from llmfold.report import card
from llmfold.runtime.quiet import quiet_hub

ATTEMPTS = 3
"""Beside the client's own, which cover only some of its requests."""
PAUSE = 2.0
SILENCE = 120.0
"""Seconds without a byte after which the hub is taken to be gone: its client would wait for ever."""
_PRIVATE_FOLDERS = (".git", ".cache")
_BAD_CARD = f"Invalid metadata in {CARD_FILE}."
"""How the client begins to say that."""
_STALE = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
"""Weights of an earlier push: a single file left there would be loaded instead of new shards."""
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|\.lock(/|$)))[\w][\w./+-]*(?<![./])")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Target:
    """Where to push.

    Attributes:
        repo_id: ``USER/NAME``.
        private: make a new repository private; ``None`` is the hub's default for the user.
        revision: branch, created if it does not exist; ``None`` is the main one.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Check the names; raises UsageError."""
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise UsageError(
                f"{self.repo_id!r} is not a name on the hub: give USER/NAME of letters, digits and -_."
            ) from error
        if self.repo_id.count("/") != 1:
            raise UsageError(f"{self.repo_id!r} does not say whose it is: give USER/NAME")
        if self.revision is not None and not _BRANCH.fullmatch(self.revision):
            raise UsageError(f"revision {self.revision!r} is not the name of a branch")

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        place = f"{constants.ENDPOINT}/{self.repo_id}"
        return f"{place}/tree/{self.revision}" if self.revision else place

    def command(self, folder: Path) -> str:
        """The command line that pushes ``folder`` here."""
        options = ["--private"] if self.private else []
        options += ["--revision", self.revision] if self.revision else []
        return shlex.join(["llmfold", "push", str(folder), self.repo_id, *options])


def push(folder: Path, target: Target, *, quiet: bool = False) -> str:
    """Push a finished output of llmfold; pushing again completes a push that broke off.

    Args:
        folder: the output.
        target: where to.
        quiet: no progress bar, no list of files.

    Returns:
        The address of the model on the hub.

    Raises:
        OutputError: ``folder`` is not a finished output.
        HubError: no token, no access, no connection; in one sentence that says what to do.
        KeyboardInterrupt: with such a sentence too.
    """
    report = check_finished(folder)
    resume = f"run `{target.command(folder)}` to go on, what has arrived is kept"
    with quiet_hub(bars=not quiet and sys.stderr.isatty()):
        api = check_login(target, resume)
        try:
            card.address(folder, report, target.repo_id)
        except OSError as error:
            card_file = folder / CARD_FILE
            raise OutputError(f"{card_file} cannot be written ({error.strerror}): make {folder} writable") from error
        files = files_of(folder)
        if not quiet:
            print(listing(folder, files))
        try:
            with _explained(target, resume):
                _retried(lambda: _create_repository(api, target))
                _retried(lambda: _send_files(api, folder, files, target))
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; {resume}") from stop
    return target.address


def check_finished(folder: Path) -> FoldRecord:
    """Return the report of a finished output.

    Raises:
        OutputError: the folder is no such thing, or lacks something that it should have.
    """
    if not folder.is_dir():
        raise OutputError(f"there is no folder {folder}: give the output of a fold")
    if (folder / JOURNAL_FILE).exists():
        raise OutputError(f"{folder} is unfinished: run the same fold again, which resumes it, and push its output")
    if not (folder / MARKER_FILE).is_file():
        raise OutputError(f"{folder} was not made by llmfold (it has no {MARKER_FILE}): push it with `hf upload`")
    report = load_record(folder)
    try:
        card.render(report)
        Checkpoint.open(folder)  # every shard of the index is there, with the tensors it should have
    except CheckpointError as error:
        raise OutputError(f"{folder} is not whole: {error}") from error
    except Exception as error:  # whatever the templates meet in a report that is none
        raise OutputError(f"{folder / REPORT_FILE} is not a report of llmfold: fold the model again") from error
    return report


def files_of(folder: Path) -> list[str]:
    """Paths inside ``folder`` of all that is pushed, sorted.

    Raises:
        OutputError: one of them is a link that leaves the folder.
    """
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = [path.as_posix() for path in paths if not set(path.parts) & set(_PRIVATE_FOLDERS)]
    try:
        for name in names:
            regular_file(folder, name)
    except CheckpointError as error:
        raise OutputError(f"{error}; nothing was pushed") from error
    return names


def listing(folder: Path, files: list[str]) -> str:
    """The files with their sizes, for people."""
    sizes = {name: (folder / name).stat().st_size for name in files}
    width = max(len(f"{size:,}") for size in sizes.values())
    lines = [f"  {size:{width},}  {name}" for name, size in sizes.items()]
    return "\n".join([f"{len(files)} files, {sum(sizes.values()):,} bytes:", *lines])


def _create_repository(api: HfApi, target: Target) -> None:
    """Create what is missing on the hub."""
    api.create_repo(target.repo_id, private=target.private, exist_ok=True)
    if target.private and not api.repo_info(target.repo_id).private:
        raise HubError(
            f"{target.repo_id} exists and is public, so nothing was pushed: choose another name, make it private "
            "in its settings, or drop --private"
        )
    if target.revision and not target.revision.startswith("refs/"):
        api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)


def _send_files(api: HfApi, folder: Path, files: list[str], target: Target) -> None:
    """Send the files; the client first lets the hub check the card."""
    try:
        api.upload_folder(
            repo_id=target.repo_id,
            folder_path=folder,
            revision=target.revision,
            commit_message="Upload folded model",
            allow_patterns=[escape(name) for name in files],
            delete_patterns=_STALE,
        )
    except ValueError as error:
        if not str(error).startswith(_BAD_CARD):
            raise
        reason = " ".join(str(error).removeprefix(_BAD_CARD).split())[:300]
        raise OutputError(f"the hub does not accept {folder / CARD_FILE}: {reason}; correct it") from error


def check_login(target: Target, resume: str = "run the same command again") -> HfApi:
    """Find out, before any work is done, whether a push to ``target`` has a chance.

    Args:
        target: where to.
        resume: what a person is told to do once the reason is gone.

    Returns:
        The hub's client, logged in.

    Raises:
        HubError: offline mode, no token, a token that is not valid or may only read, no connection.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it")
    token = huggingface_hub.get_token()
    if token is None:
        raise HubError(
            f"there is no token to push to {target.repo_id} with: log in with `hf auth login`, or set HF_TOKEN"
        )
    api = HfApi(token=token)
    with _explained(target, resume):
        account = _retried(api.whoami)
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise HubError(f"the token may only read: log in with one that may write to {target.repo_id}")
    return api


def _retried(step: Callable[[], Result]) -> Result:
    """Do ``step``, again if it fails for a reason that may pass."""
    for attempt in range(1, ATTEMPTS):
        try:
            return _unless_silent(step)
        except Exception as error:  # by version the client raises errors of requests, httpx, httpx2 or hf_xet
            if not is_transient(error):
                raise
            time.sleep(PAUSE * attempt)
    return _unless_silent(step)


def _unless_silent(step: Callable[[], Result]) -> Result:
    """Do ``step`` with a limit to how long the client waits for the hub, where its transport takes one."""
    session: Any = huggingface_hub.get_session()
    hooks = getattr(session, "event_hooks", {})

    def limit(request: Any) -> None:  # some requests ask for no limit at all, so that of the session would not do
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)

    session.event_hooks = {**hooks, "request": [*hooks.get("request", ()), limit]}
    try:
        return step()
    finally:
        session.event_hooks = hooks


@contextmanager
def _explained(target: Target, resume: str) -> Iterator[None]:
    """Raise what the client raises as a sentence."""
    try:
        yield
    except (HubError, OutputError):
        raise
    except Exception as error:  # see _retried
        raise explain(error, target.repo_id, resume) from error
