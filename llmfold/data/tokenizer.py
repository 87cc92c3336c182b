"""The tokenizer of a checkpoint: as texts are read by it here, and as stock transformers chooses it."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError
from llmfold.folder_files import regular_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
"""Any of which a tokenizer can be read from, the most telling first."""
_PACKAGES = {
    "sentencepiece": {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"},
    "tiktoken": {"tiktoken": "tiktoken"},
}
"""By the kind of a tokenizer.model, the packages that transformers reads it by and their modules."""
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""The first line of a file of tiktoken: a token in base 64 and its number."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, from tokenizer.json itself where there is one.

    Raises:
        CheckpointError: there is none, or it cannot be read here.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes seconds, which a plan need not

    from llmfold.runtime.quiet import quiet_transformers

    found = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not found:
        raise CheckpointError(f"{folder} has no tokenizer: copy tokenizer.json from the model that it was made from")
    path = regular_file(folder, found[0])
    try:
        with quiet_transformers():
            if path.name == "tokenizer.json":
                return PreTrainedTokenizerFast.from_pretrained(folder)
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for files that it cannot use
        words = _vocabulary_file(path)
        if words is not None:  # of which transformers says what it tried last, not what is wrong
            raise CheckpointError(_unreadable(words)) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(f"{path} is no tokenizer that can be read ({reason}): download it again") from error


def _vocabulary_file(path: Path) -> Path | None:
    """The file of sentencepiece or tiktoken, whatever its name, that a tokenizer is read from; None where none is."""
    if path.suffix == ".model" or path.name in ("tokenizer.json", "vocab.json"):
        return path if path.suffix == ".model" else None
    found = sorted(each.name for each in path.parent.glob("*.model"))
    return regular_file(path.parent, found[0]) if found else None


def _unreadable(path: Path) -> str:
    """Why a file of sentencepiece or tiktoken cannot be read here."""
    with path.open("rb") as file:
        kind = "tiktoken" if _TIKTOKEN.match(file.read(1000)) else "sentencepiece"
    lacking = [package for package, module in _PACKAGES[kind].items() if not _is_installed(module)]
    if lacking:
        return f"{path} needs {' and '.join(lacking)}: pip install {' '.join(lacking)}"
    return f"{path} is no file of {kind} that can be read: download it again"


def max_token_id(folder: Path) -> int:
    """The largest id that the tokenizer of ``folder`` could write; raises CheckpointError as :func:`load_tokenizer`."""
    return max(load_tokenizer(folder).get_vocab().values(), default=0)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files that a tokenizer is read from."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def stock_tokenizer(folder: Path) -> Any | None:
    """What ``AutoTokenizer`` makes of a folder, code of its own aside; None where it has none that can be read here."""
    from transformers import AutoTokenizer  # takes seconds, which a plan need not

    from llmfold.runtime.quiet import quiet_transformers

    if not has_tokenizer(folder):
        return None
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # transformers raises many kinds for files that it cannot use
        return None
