"""The files beside the weights that belong to the compressed model, and what of them may be published."""

import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llmfold.checkpoint.base_card import CARD_FILE
from llmfold.errors import CheckpointError, printable
from llmfold.folder_files import regular_file
from llmfold.jsonfile import parse_object, read_bounded
from llmfold.runtime.storage import file_sha256

TEMPLATE_FOLDER = "additional_chat_templates"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Matched against lower-cased names.
_LICENCES = ("license*", "licence*", "notice*", "use_policy*", "copying*")
PATTERNS = (
    *("tokenizer.json", "tokenizer.*.json", "tokenizer.model", "tokenizer.model.*", TOKENIZER_CONFIG, "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "bpe.codes", "*.tiktoken"),
    *("tiktoken.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "spm.model", "*.spm"),
    *("chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "preprocessor_config.json", "*_preprocessor_config.json", "processor_config.json"),
    *_LICENCES,
)
"""Of the files that tokenizers and processors read, chat templates, generation configs and licences."""
_NEVER = (".py", ".safetensors", ".bin", ".pt", ".pth", ".gguf")
_MADE_ANEW = (
    *("config.json", CARD_FILE.lower(), "*.safetensors", "model.safetensors.index.json"),
    *("llmfold*", "modeling_llmfold.py", "report.json", "report.html"),
)
"""What an output has of its own."""
MAX_SIDE_BYTES = 1 << 30
_SHOWN = 8
_NAMES_OF_FOLDERS = ("_name_or_path", "name_or_path", "cache_dir")


def find_side_files(folder: Path, *, remote_code: bool = False) -> list[Path]:
    """Return the tokenizer, template, generation and licence files of ``folder``, sorted.

    Tokenizer files are those of ``PATTERNS`` and those that the stock class of tokenizer_config.json names. With
    ``remote_code`` also its ``*.py`` files. Files of ``additional_chat_templates/`` keep that folder.

    Raises:
        CheckpointError: one of them is a link that leaves the folder, no file, or too large to be what it is called.
    """
    patterns = (*PATTERNS, *_named_by_class(folder))
    files = [path.name for path in folder.iterdir() if not path.is_dir()]
    names = sorted(name for name in files if _belongs(name, patterns, remote_code))
    templates = sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    names += [f"{TEMPLATE_FOLDER}/{path.name}" for path in templates if not path.is_dir()]
    return [_of_bounded_size(regular_file(folder, name)) for name in names]


def side_digests(folder: Path) -> list[tuple[str, str]]:
    """Names and SHA-256 of the side files that decide what a model reads or writes; licences do not."""
    paths = (path for path in find_side_files(folder) if not _belongs(path.name, _LICENCES, remote_code=False))
    return [(path.name, file_sha256(path)) for path in paths]


def copy_side_files(folder: Path, target: Path, *, remote_code: bool = False) -> list[str]:
    """Copy the side files of ``folder`` into the folder ``target``, paths of the machine that wrote them left out.

    Without ``remote_code`` no ``auto_map`` is written either: it would name code that is not there.

    Returns:
        What a person should know of what was not copied, a sentence each.

    Raises:
        CheckpointError: as of :func:`find_side_files`.
        OSError: one cannot be written.
    """
    paths, unmapped = find_side_files(folder, remote_code=remote_code), []
    for path in paths:
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        content, mapped = _published(path, remote_code=remote_code)
        if content is None:
            shutil.copyfile(path, copy)
        else:
            copy.write_bytes(content)
        unmapped += [path.name] * mapped
    notes = []
    if unmapped:
        notes.append(
            f"the code that auto_map of {', '.join(unmapped)} names was not copied, nor auto_map: "
            "--trust-remote-code carries both"
        )
    left = _left_behind(folder, {path.name for path in paths})
    if left:
        shown = ", ".join(map(printable, left[:_SHOWN]))
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        notes.append(f"not copied, as no file of a tokenizer, template or licence: {shown}{more}")
    return notes


def without_paths(value: Any, *, code: bool = True) -> Any:
    """A JSON value without the fields, at any depth, that tell where a loader found its files.

    Args:
        value: content of a config.
        code: whether ``auto_map`` stays.
    """
    if isinstance(value, list):
        return [without_paths(item, code=code) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if not _is_path(k, v) and (code or k != "auto_map")}
    return {k: without_paths(v, code=code) for k, v in kept.items()}


def _is_path(key: str, value: Any) -> bool:
    if key in _NAMES_OF_FOLDERS:
        return True
    return key.endswith("_file") and isinstance(value, str) and ("/" in value or "\\" in value)


def _of_bounded_size(path: Path) -> Path:
    if path.stat().st_size > MAX_SIDE_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_SIDE_BYTES} bytes, which no such file needs: remove it")
    return path


def _published(path: Path, *, remote_code: bool) -> tuple[bytes | None, bool]:
    """What a copy holds, None for the file's own bytes where nothing is left out; and whether an ``auto_map`` was."""
    if not path.name.lower().endswith("_config.json"):
        return None, False
    try:
        value = parse_object(read_bounded(path), path, unique_keys=False)
    except CheckpointError:  # nothing reads it, so nothing is taken from it
        return None, False
    clean = without_paths(value, code=remote_code)
    if clean == value:
        return None, False
    return (json.dumps(clean, indent=2) + "\n").encode(), clean != without_paths(value)


def _named_by_class(folder: Path) -> Iterable[str]:
    """Lower-cased names of the files that the stock tokenizer class of ``folder`` reads."""
    path = folder / TOKENIZER_CONFIG
    if not path.exists():
        return ()
    raw = read_bounded(regular_file(folder, TOKENIZER_CONFIG))
    try:
        name = parse_object(raw, path, unique_keys=False).get("tokenizer_class")
        from transformers.models.auto.tokenization_auto import tokenizer_class_from_name  # takes seconds

        names = tokenizer_class_from_name(name).vocab_files_names.values()
    except Exception:  # no such class, or one whose packages are missing
        return ()
    return [each.lower() for each in names if isinstance(each, str)]


def _belongs(name: str, patterns: Iterable[str], remote_code: bool) -> bool:
    lower = name.lower()
    if lower.endswith(_NEVER):
        return remote_code and lower.endswith(".py")
    return any(fnmatchcase(lower, pattern) for pattern in patterns)


def _left_behind(folder: Path, copied: set[str]) -> list[str]:
    """Names of what neither was copied nor is made anew, sorted; hidden files aside."""
    names = (path.name for path in folder.iterdir() if path.name != TEMPLATE_FOLDER)
    others = (name for name in names if name not in copied and not name.startswith("."))
    return sorted(name for name in others if not any(fnmatchcase(name.lower(), each) for each in _MADE_ANEW))
