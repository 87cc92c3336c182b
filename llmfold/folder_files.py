"""Which files of a model folder may be opened: a checkpoint may come from anywhere, so nothing in it is trusted."""

from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError
from llmfold.jsonfile import read_object

CONFIG_FILE = "config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"


def is_plain_name(name: str) -> bool:
    """Tell whether ``name`` is the name of a file right inside a folder, with no way out of it."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def regular_file(folder: Path, name: str) -> Path:
    """Return ``folder / name`` after checking that it is a regular file that may be read.

    Links are followed only inside ``folder`` itself or, for a snapshot in a Hugging Face cache, into the blobs of the
    same cached repository (that is how the cache stores every file); any other target could leak a private file into
    the output.

    Raises:
        CheckpointError: the file is missing, is not a regular file but a link that leaves the folder, or a pointer of
            git-lfs.
    """
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is missing: download the model again") from error
    if not any(target.is_relative_to(root) for root in _readable_roots(folder.resolve())):
        raise CheckpointError(f"{path} is a link to {target}, outside the model folder: replace it by a copy")
    if not target.is_file():
        raise CheckpointError(f"{path} is not a regular file: download the model again")
    if _is_pointer(target):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself: run 'git lfs pull' in its folder")
    return path


def raw_config(folder: Path) -> dict[str, Any]:
    """Return the object in the config.json of a folder.

    Raises:
        CheckpointError: the file is not to be read, or holds no such object within the bounds.
    """
    return read_object(regular_file(folder, CONFIG_FILE), unique_keys=False)


def _is_pointer(path: Path) -> bool:
    """Whether git left its note of a large file in place of it."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:  # whoever reads it will say why it cannot be read
        return False


def _readable_roots(folder: Path) -> list[Path]:
    roots = [folder]
    for commit in (folder, *folder.parents):
        repository = commit.parent.parent
        if commit.parent.name == "snapshots" and repository.name.startswith("models--"):
            roots.append((repository / "blobs").resolve())
    return roots
