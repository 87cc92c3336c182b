"""Token sequences for the methods that measure: sampled from the model itself, or cut from a text the user names."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.config import FoldConfig
from llmfold.data import tokens as tk
from llmfold.data.beginnings import MIXTURE
from llmfold.data.plain_text import UNREADABLE, read_plain_text
from llmfold.data.sampling import Sampler, Sampling, cache_bytes
from llmfold.errors import UsageError
from llmfold.methods.dense import Measurement
from llmfold.methods.streams import TokenStream
from llmfold.models import ModelShape, Role, stock_config
from llmfold.models.casting import load_model
from llmfold.models.forward import forward_context
from llmfold.runtime.devices import compute_dtype
from llmfold.runtime.hidden_states import STATE_FOLDER
from llmfold.runtime.launch import local_world_size
from llmfold.runtime.limits import available_memory, room
from llmfold.runtime.reduction import OrderedReduce

BATCH_FOLDER = f"{STATE_FOLDER}/tokens"
_HUB_CHARACTERS_PER_TOKEN = 16
_SECONDS_BETWEEN_NEWS = 2.0


@dataclass(frozen=True)
class Setting:
    """Where a method works: the source, the work folder, the device, and the processes that share the work."""

    config: FoldConfig
    checkpoint: Checkpoint
    shape: ModelShape
    work: Path
    device: torch.device
    team: OrderedReduce = field(default_factory=OrderedReduce)

    def read_layer(self, index: int) -> dict[Role, Tensor]:
        """Stored tensors of a layer by role."""
        return {role: self.checkpoint.read(name) for role, name in self.shape.layer_tensors(index).items()}


@dataclass(frozen=True)
class TokenSource:
    """Tokens to measure on.

    Attributes:
        on: their hidden states.
        tokens: (sequences, length) int64 on the CPU.
        facts: what they are, for the report.
    """

    on: Measurement
    tokens: Tensor
    facts: dict[str, Any]


def token_source(setting: Setting, say: Callable[[str], None]) -> TokenSource:
    """Sample from the model under ``--method self`` or ``--data self``, else read the text of ``--data``; stored once.

    Raises:
        LlmfoldError: missing data, unusable tokens.
    """
    checkpoint, shape = setting.checkpoint, setting.shape
    budget, sampled = tk.token_budget(setting.config, shape), setting.config.samples
    if sampled:
        make, data = lambda: _sampled(setting, say), "sampled from the model itself"
    else:
        say("reading calibration text")
        make, data = lambda: _calibration(setting, budget), f"outside text: {Path(str(setting.config.data)).name}"
    tokens = tk.stored_tokens(setting.work / tk.TOKENS_FILE, make)
    shutil.rmtree(setting.work / BATCH_FOLDER, ignore_errors=True)
    quality = tk.token_statistics(tokens)
    facts = {
        "data": data,
        "sequences": budget.sequences,
        "sequence_length": budget.length,
        "documents": budget.documents if sampled else None,
        "tokens_sha256": tk.tokens_sha256(tokens),
        "token_quality": quality,
        "warning": tk.loop_warning(quality) if sampled else None,
    }
    on = Measurement(
        shape,
        TokenStream(forward_context(checkpoint.config, shape)),
        lambda: tk.embed(checkpoint, tokens, setting.device),
        (budget.sequences, budget.length),
        setting.work,
        setting.device,
        setting.team,
    )
    return TokenSource(on, tokens, facts)


def sample_batches(
    setting: Setting,
    say: Callable[[str], None],
    share: Callable[[Sequence[int]], Sequence[int]] = lambda batches: batches,
) -> None:
    """Sample this process's batches of documents and store each of them in the work folder as it is finished.

    Args:
        setting: where to work.
        say: told how many tokens this process has sampled.
        share: batches that fall to this process, by number.

    Raises:
        CheckpointError: the model computes NaN or infinity, or nothing says how a document begins.
    """
    sampling, batches = _batches(setting)
    mine = share(range(len(batches)))
    missing = [index for index in mine if not _batch_path(setting, index).exists()]
    if not missing or (setting.work / tk.TOKENS_FILE).exists():
        return
    length = sampling.budget.document_length
    total, left = (length * sum(len(batches[index]) for index in some) for some in (mine, missing))
    progress = _Progress(say, total, total - left)
    offload = setting.work / f"offload-{mine[0]}"
    cache = max(map(len, batches)) * cache_bytes(stock_config(setting.checkpoint.config), length)
    try:
        place = _place(setting, cache, min(len(batches), local_world_size()), offload)
        model = load_model(setting.checkpoint.folder, _dtype(setting), setting.device, **place.loading)
        if place.caches is not None:
            place.caches.mkdir(parents=True, exist_ok=True)
        sampler = Sampler(setting.checkpoint.folder, model, place.caches)
        for index in missing:
            sample = partial(sampler.sample, sampling, index, batches[index], progress.add)
            tk.stored_tokens(_batch_path(setting, index), sample)
    finally:
        shutil.rmtree(offload, ignore_errors=True)


def _sampled(setting: Setting, say: Callable[[str], None]) -> Tensor:
    """All batches in one, sampled here where no process has sampled them yet."""
    sample_batches(setting, say)
    sampling, batches = _batches(setting)
    return sampling.budget.cut(
        torch.cat([tk.load_tokens(_batch_path(setting, index)) for index in range(len(batches))])
    )


def _batches(setting: Setting) -> tuple[Sampling, list[range]]:
    config = setting.config
    sampling = Sampling(tk.token_budget(config, setting.shape), config.seed, config.temperature, mixture=MIXTURE)
    return sampling, sampling.batches(stock_config(setting.checkpoint.config))


def _batch_path(setting: Setting, index: int) -> Path:
    return setting.work / BATCH_FOLDER / f"{index:05d}.npy"


class _Progress:
    """Says now and then how many tokens are there."""

    def __init__(self, say: Callable[[str], None], total: int, done: int) -> None:
        self._say, self._total, self._done = say, total, done
        self._tell()

    def add(self, tokens: int) -> None:
        """Count tokens that were drawn."""
        self._done += tokens
        if time.monotonic() - self._told >= _SECONDS_BETWEEN_NEWS:
            self._tell()

    def _tell(self) -> None:
        self._say(f"sampling tokens: {self._done:,} of {self._total:,}")
        self._told = time.monotonic()


def _dtype(setting: Setting) -> torch.dtype:
    return compute_dtype(setting.config.compute_dtype, setting.device, setting.checkpoint.dtype)


def _device_name(device: torch.device) -> int | str:
    """What accelerate calls a device."""
    return "cpu" if device.type == "cpu" else device.index or 0


@dataclass(frozen=True)
class _Place:
    """How a model is loaded, and where its key/value cache lies: in files, or in memory (None)."""

    loading: dict[str, Any]
    caches: Path | None = None


def _place(setting: Setting, cache: int, processes: int, offload: Path) -> _Place:
    """How the model is held while it samples: whole on its device if it fits, else spread by accelerate.

    It is held in the dtype of the arithmetic if there is room, else as stored. What is left for the key/value cache is
    counted first; ``max_memory`` bounds both together. Where the host has no room for both, the cache lies in files,
    which the kernel keeps in memory as it can. Processes that sample on one machine share its memory.
    """
    limits, device = setting.config.memory_limits, setting.device
    own = _device_name(device)
    rooms: dict[int | str, int] = {"cpu": room("cpu", available_memory() // processes, limits)}
    if own != "cpu":
        rooms[own] = room(own, int(torch.cuda.mem_get_info(device)[0]), limits)
    for dtype in (_dtype(setting), None):
        if setting.checkpoint.size_in(dtype) + cache <= rooms[own]:
            return _Place({"as_stored": dtype is None})
    if own == "cpu":
        caches = offload / "cache"
        if setting.checkpoint.size_in(None) <= rooms[own]:
            return _Place({"as_stored": True}, caches)
    else:
        caches, rooms[own] = None, max(rooms[own] - cache, 0)
    return _Place({"device_map": "auto", "offload_folder": offload, "max_memory": rooms}, caches)


def _calibration(setting: Setting, budget: tk.TokenBudget) -> Tensor:
    origin = str(setting.config.data)
    path = Path(origin).expanduser()
    characters = budget.sequences * budget.length * _HUB_CHARACTERS_PER_TOKEN
    text = _read_text(path, characters) if path.is_file() else _read_dataset(origin, characters)
    return tk.text_tokens(setting.checkpoint.folder, text, budget, origin)


def _read_text(path: Path, characters: int) -> str:
    try:
        return read_plain_text(path, characters)
    except UNREADABLE as error:
        raise UsageError(f"--data {path} cannot be read as UTF-8 text: {error}") from error


def _read_dataset(name: str, characters: int) -> str:
    """Head of the train split of a hub data set, ``name`` or ``name:config``; documents joined by blank lines."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"--data {name} is no file, and hub data sets need the eval extra: pip install 'llmfold[eval]'"
        ) from error
    repository, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, subset or None, split="train", streaming=True)
        pieces, size = [], 0
        for row in rows:
            pieces.append(str(row["text"]))
            size += len(pieces[-1]) + 2
            if size >= characters:
                break
    except Exception as error:  # the loader raises whatever its transport and format readers do
        raise UsageError(f"--data {name} is neither a file nor a readable hub data set with a text column") from error
    return "\n\n".join(pieces)
