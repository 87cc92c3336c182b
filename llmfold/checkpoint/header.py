"""The header of one safetensors file: validated by safetensors, then read without touching the weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llmfold.errors import CheckpointError
from llmfold.jsonfile import MAX_JSON_BYTES, parse_object


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor as its file declares it: ``dtype`` by its safetensors name, e.g. ``BF16``."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What one shard says about itself: ``entries`` in file order, and what identifies the file."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str
    entries: tuple[HeaderEntry, ...]


def read_header(path: Path) -> Header:
    """Validate the safetensors file at ``path`` and return its header.

    safetensors itself checks that the tensors lie end to end, agree with their shapes and fill the file exactly.

    Raises:
        CheckpointError: the file is unreadable, truncated, damaged, has an absurd header or names a tensor twice.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if status.st_size < 8 or length > status.st_size - 8:
                raise CheckpointError(f"{path} is truncated or not a safetensors file: download it again")
            if length > MAX_JSON_BYTES:
                raise CheckpointError(f"{path} has a header of {length} bytes, more than the {MAX_JSON_BYTES} allowed")
            text = file.read(length)
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): download it again") from error
    except (OSError, MemoryError) as error:  # the latter where there is no room for its map
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    declared = parse_object(text, path, unique_keys=True)
    declared.pop("__metadata__", None)
    in_file_order = sorted(declared.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
    entries = tuple(HeaderEntry(name, entry["dtype"], tuple(entry["shape"])) for name, entry in in_file_order)
    return Header(path, status.st_size, status.st_mtime_ns, hashlib.sha256(text).hexdigest(), entries)
