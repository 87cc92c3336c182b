"""What went wrong with the hub, in one sentence; messages of its client stay inside, since they quote requests."""

import re
from collections.abc import Iterator

from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from llmfold.errors import HubError

# The client's transport is requests, httpx or httpx2, by version; hf_xet has one of its own.
_TRANSPORTS = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")
_TRANSIENT = (408, 429)
# hf_xet takes an answer it does not like for a broken connection.
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
_ANSWERS = {
    401: "the hub did not accept the token (401): log in again with `hf auth login`, or set HF_TOKEN to a valid one",
    402: "the hub wants a paid plan for this (402): free storage, or push to another account",
    403: "the token may not write to {repo_id} (403): use one with write access there, or push under another name",
    404: "there is no {repo_id} on the hub that this token can see (404): check the name",
}


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the connection broke, or the hub is overloaded or failing.

    After a silence it would only double the wait.
    """
    status = _status(error)
    broken = status is None and _transport_error(error) is not None and not _is_silence(error)
    return broken or status in _TRANSIENT or (status or 0) >= 500


def explain(error: Exception, repo_id: str, resume: str) -> HubError:
    """Put into words what stopped a push.

    Args:
        error: what the client raised.
        repo_id: where to.
        resume: what to do to go on, such as ``run … again``.
    """
    status, broken = _status(error), _transport_error(error)
    if status in _ANSWERS:
        missing = any(isinstance(cause, RevisionNotFoundError) for cause in _causes(error))
        said = f"{repo_id} has no such revision (404): push to a branch" if missing else _ANSWERS[status]
        return HubError(f"{said.format(repo_id=repo_id)}; then {resume}")
    if status is not None and is_transient(error):
        return HubError(f"the hub keeps answering {status} for {repo_id}: wait a little and {resume}")
    if status is not None:
        return HubError(
            f"the hub refused what was sent to {repo_id} ({status}{_reason(error)}); correct that and {resume}"
        )
    if broken is not None and _is_silence(error):
        return HubError(f"the hub fell silent ({type(broken).__name__}): wait a little and {resume}")
    if broken is not None:
        return HubError(f"the connection to the hub failed ({type(broken).__name__}): check the network and {resume}")
    return HubError(f"the upload to {repo_id} broke off ({type(error).__name__}): {resume}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: the client wraps what stopped the upload of a file."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _status(error: BaseException) -> int | None:
    """The status that the hub answered, None if it did not answer."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            status = getattr(cause.response, "status_code", None)
            return int(status) if status is not None else None
        if isinstance(cause, ConnectionError) and (told := _XET_STATUS.search(str(cause))):
            return int(told.group(1))
    return None


def _transport_error(error: BaseException) -> BaseException | None:
    """The error of the transport, if that is what stopped the push."""
    for cause in _causes(error):
        if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.split(".")[0] in _TRANSPORTS:
            return cause
    return None


def _is_silence(error: BaseException) -> bool:
    """Whether a limit of time ended the wait, by the names that clients have for it."""
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    return bool(kinds & {"TimeoutException", "Timeout", "TimeoutError"})


def _reason(error: BaseException) -> str:
    """What the hub itself said, which holds no secret of ours."""
    message = next((getattr(cause, "server_message", None) for cause in _causes(error)), None)
    return f": {' '.join(str(message).split())[:200]}" if message else ""
