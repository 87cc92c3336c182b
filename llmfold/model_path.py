"""Whether what the user typed as a model is a folder on this machine, told before anything large is imported."""

import os
from pathlib import Path

from llmfold.errors import CheckpointError, UsageError


def local_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder that ``model`` names, or None where it can only be the name of a model on the hub.

    Raises:
        UsageError: ``revision`` given for a local folder.
        CheckpointError: a file, or a path where nothing is.
    """
    path = os.path.expanduser(model)
    if os.path.exists(path):
        if not os.path.isdir(path):
            raise CheckpointError(f"model {model} is a file: pass the folder that holds config.json and the weights")
        if revision is not None:
            raise UsageError(f"--revision {revision} works for hub models only, and {model} is a local folder")
        return Path(path)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CheckpointError(f"model folder {model} does not exist")
    return None
