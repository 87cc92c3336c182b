"""From what the user typed to a local model folder: a path, or a model of the Hugging Face hub."""

import errno
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llmfold.checkpoint.adapter import ADAPTER_CONFIG, refuse_adapter
from llmfold.checkpoint.side_files import PATTERNS
from llmfold.checkpoint.weights import INDEX_FILE, SINGLE_FILE, no_weights, read_weight_map
from llmfold.errors import CheckpointError, LlmfoldError
from llmfold.model_path import local_folder

# Matched by the hub client with case; weights are asked for by name only, so pickles never travel.
_METADATA = [
    *("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py", "README.md", *PATTERNS),
    *(
        f"{word}*"
        for stem in ("license", "licence", "notice", "use_policy", "copying")
        for word in (stem, stem.upper())
    ),
]


@dataclass(frozen=True)
class Source:
    """A model to read: its local ``folder``, the ``name`` the user typed and, from the hub, the commit's hash."""

    folder: Path
    name: str
    revision: str | None


def resolve(model: str, *, revision: str | None = None, weights: bool = True) -> Source:
    """Return the local folder of ``model``, downloading it from the hub when it is not a path.

    Without ``weights`` only configs, index and tokenizer files are fetched: enough to plan by the config, not enough
    for ``Checkpoint.open``.

    Raises:
        UsageError: ``revision`` given for a local folder.
        CheckpointError: the folder or the hub's model cannot be had, or has no safetensors weights.
    """
    folder = local_folder(model, revision)
    if folder is not None:
        return Source(folder, model, None)
    try:
        return _download(model, revision, weights)
    except LlmfoldError:
        raise
    # The client passes on errors of its transport (requests or httpx, by version), so no list of classes is complete.
    except Exception as error:
        raise CheckpointError(_explain(error, model, revision)) from error


def _download(model: str, revision: str | None, weights: bool) -> Source:
    folder = Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=_METADATA))
    commit = folder.name
    if (folder / ADAPTER_CONFIG).exists():
        refuse_adapter(folder, model, huggingface_hub.list_repo_files(model, revision=commit))
    if weights:
        index = folder / INDEX_FILE
        names = sorted(set(read_weight_map(index).values())) if index.exists() else [SINGLE_FILE]
        patterns = [escape(name) for name in names]
        folder = Path(huggingface_hub.snapshot_download(model, revision=commit, allow_patterns=patterns))
        if not index.exists() and not (folder / SINGLE_FILE).exists():
            raise no_weights(model, huggingface_hub.list_repo_files(model, revision=commit))
    return Source(folder, model, commit)


def _explain(error: Exception, model: str, revision: str | None) -> str:
    # Only classes and status codes are told: messages of the client may quote requests.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    status = getattr(cause.response, "status_code", None) if isinstance(cause, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        return f"model {model!r} is neither a folder nor a valid hub name such as owner/name"
    if isinstance(cause, GatedRepoError):
        return f"{model} is gated: accept its licence at https://huggingface.co/{model} and log in with `hf auth login`"
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"there is no folder and no public hub model called {model}: check the name, or log in with "
            "`hf auth login` if the model is private"
        )
    if isinstance(cause, RevisionNotFoundError):
        return f"{model} has no revision {revision}: see https://huggingface.co/{model}/commits/main"
    if status in (401, 403):
        return f"the hub refused access to {model} ({status}): log in with `hf auth login` and a token that may read it"
    if status is not None:
        return f"the hub answered {status} for {model}: try again later, or pass a local folder"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full while downloading {model}: free space, or set HF_HOME to another disk, and try again"
    return (
        f"there is no folder called {model} and the hub cannot be reached ({type(error).__name__}): "
        "check the network, or pass a local folder"
    )
