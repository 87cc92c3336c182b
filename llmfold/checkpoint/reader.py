"""Reading a checkpoint lazily: everything a header can tell is checked first, weights are mapped when asked for."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmfold.checkpoint.accept import is_legacy_buffer, refuse_quantised_config, refuse_quantised_tensor, stock_name
from llmfold.checkpoint.adapter import refuse_adapter
from llmfold.checkpoint.blocks import is_finite
from llmfold.checkpoint.dtypes import STORED_DTYPES
from llmfold.checkpoint.header import Header, read_header
from llmfold.checkpoint.shards import TensorSpec
from llmfold.checkpoint.side_files import copy_side_files, find_side_files, side_digests
from llmfold.checkpoint.weights import INDEX_FILE, SINGLE_FILE, no_weights, read_weight_map
from llmfold.errors import CheckpointError
from llmfold.folder_files import CONFIG_FILE, regular_file
from llmfold.jsonfile import read_object


@dataclass(frozen=True)
class TensorInfo(TensorSpec):
    """A weight as its shard declares it: ``shard`` is the file, ``stored`` the name there where that is another."""

    shard: str
    stored: str = ""


class Checkpoint:
    """A validated checkpoint folder whose weights stay on disk until they are read.

    Attributes:
        folder: the model folder.
        config: config.json as it was read.
        tensors: name -> TensorInfo, by shard name and then by place in the file.
        dropped: names of legacy buffers that are in the files but are not weights.
    """

    def __init__(self, folder: Path, config: dict[str, Any], config_sha256: str, headers: list[Header]) -> None:
        """List the weights of validated headers; see :meth:`open`.

        Raises:
            CheckpointError: a tensor is quantised, not a weight, or stored twice.
        """
        self.folder = folder
        self.config = config
        self.tensors: dict[str, TensorInfo] = {}
        self.dropped: list[str] = []
        self._config_sha256 = config_sha256
        self._headers = {header.path.name: header for header in headers}
        for header in headers:
            self._add(header)

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Open the checkpoint in ``folder``, reading its config, index and headers but no weight.

        Raises:
            CheckpointError: something is missing, damaged, unsafe, quantised, an adapter or contradicts itself.
        """
        if not folder.is_dir():
            raise CheckpointError(f"model folder {folder} does not exist")
        refuse_adapter(folder, str(folder), (path.name for path in folder.iterdir()))
        path = regular_file(folder, CONFIG_FILE)
        config = read_object(path, unique_keys=False)
        refuse_quantised_config(config, str(folder))
        return cls(folder, config, hashlib.sha256(path.read_bytes()).hexdigest(), _read_headers(folder))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which most parameters are stored."""
        parameters: Counter[torch.dtype] = Counter()
        for info in self.tensors.values():
            parameters[info.dtype] += info.numel
        return parameters.most_common(1)[0][0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by name."""
        return {name: info.shape for name, info in self.tensors.items()}

    def size_in(self, dtype: torch.dtype | None) -> int:
        """Bytes of all weights in ``dtype``, None being their own."""
        return sum(info.numel * (dtype or info.dtype).itemsize for info in self.tensors.values())

    def read(self, name: str, part: range | None = None, *, check_finite: bool = True) -> Tensor:
        """Return the weight ``name`` with its stored dtype and shape, mapped from the file without a copy.

        The map is private (writing into the tensor does not reach the file) and goes away with the tensor. Of ``part``
        come those entries of the first axis, and they alone are looked at.

        Raises:
            CheckpointError: no such weight, the shard changed since it was opened, or NaN or infinity was found.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}")
        self.confirm(name)
        path = self.folder / self.tensors[name].shard
        with _reading(name, path), safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.tensors[name].stored or name)
        if part is not None:
            tensor = tensor[part.start : part.stop]
        if check_finite and not is_finite(tensor):
            raise CheckpointError(
                f"tensor {name!r} in {path} holds NaN or infinity: the model is damaged, download it again"
            )
        return tensor

    def confirm(self, name: str) -> None:
        """Raise CheckpointError if the shard of ``name`` changed since the checkpoint was opened."""
        header = self._headers[self.tensors[name].shard]
        with _reading(name, header.path):
            status = header.path.stat()
        if (status.st_size, status.st_mtime_ns) != (header.size, header.mtime_ns):
            raise CheckpointError(f"{header.path} changed while it was being read: run the command again")

    def fingerprint(self) -> str:
        """Return a sha256 that names this source: shards by name, size and time, all else by content.

        All else is the config, headers, and the tokenizer's and other files that are read beside them.
        """
        shards = [(name, header.size, header.mtime_ns, header.sha256) for name, header in self._headers.items()]
        return hashlib.sha256(json.dumps([self._config_sha256, shards, side_digests(self.folder)]).encode()).hexdigest()

    def side_files(self, *, remote_code: bool = False) -> list[Path]:
        """Return the files to copy to the output; see ``find_side_files``."""
        return find_side_files(self.folder, remote_code=remote_code)

    def copy_side_files(self, target: Path, *, remote_code: bool = False) -> list[str]:
        """Copy them into ``target``, and return what to say of the others; see ``copy_side_files``."""
        return copy_side_files(self.folder, target, remote_code=remote_code)

    def _add(self, header: Header) -> None:
        shard = header.path.name
        for entry in header.entries:
            if is_legacy_buffer(entry.name, entry.shape):
                self.dropped.append(entry.name)
                continue
            refuse_quantised_tensor(entry.name, entry.dtype, shard)
            dtype = STORED_DTYPES[entry.dtype]
            name = stock_name(entry.name)
            if name in self.tensors:
                both = f"{self.tensors[name].stored or name} and {entry.name}"
                raise CheckpointError(f"{self.folder} stores tensor {name!r} twice, as {both}: remove one of them")
            stored = "" if entry.name == name else entry.name
            self.tensors[name] = TensorInfo(name, dtype, entry.shape, shard, stored)


def is_damage(error: CheckpointError) -> bool:
    """Whether the files themselves are wrong; what has another cause, such as a lack of memory, may be read later."""
    return error.__cause__ is None or isinstance(error.__cause__, SafetensorError)


@contextmanager
def _reading(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"tensor {name!r} in {path} cannot be read: {error}") from error


def _read_headers(folder: Path) -> list[Header]:
    if not (folder / INDEX_FILE).exists():
        if not (folder / SINGLE_FILE).exists():
            raise no_weights(str(folder), (path.name for path in folder.iterdir()))
        return [read_header(regular_file(folder, SINGLE_FILE))]
    weight_map = read_weight_map(regular_file(folder, INDEX_FILE))
    shards = sorted(set(weight_map.values()))
    # transformers would load the single file, so folding the shards would fold another model.
    if (folder / SINGLE_FILE).exists() and SINGLE_FILE not in shards:
        raise CheckpointError(f"{folder} has {SINGLE_FILE} and an index that does not list it: remove the stale one")
    headers = [read_header(regular_file(folder, shard)) for shard in shards]
    _refuse_twice(headers)
    return headers


def _refuse_twice(headers: list[Header]) -> None:
    """Refuse a tensor that is in two shards; for the rest shards say what they hold, as they do for transformers."""
    shard_of: dict[str, str] = {}
    for shard, entry in ((header.path.name, entry) for header in headers for entry in header.entries):
        name = entry.name
        if name in shard_of:
            raise CheckpointError(f"tensor {name!r} is in both {shard_of[name]} and {shard}: download them again")
        shard_of[name] = shard
