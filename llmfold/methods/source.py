"""Token sequences for the methods that measure: sampled from the model itself, or cut from a text the user names."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.data import tokens as tk
from llmfold.data.beginnings import MIXTURE
from llmfold.data.plain_text import EXTRA, join_documents, read_plain_text
from llmfold.data.sampling import Sampler, Sampling, cache_bytes
from llmfold.data.tokenizer import load_tokenizer
from llmfold.errors import CheckpointError, UsageError
from llmfold.methods.base import FoldContext
from llmfold.methods.dense import Measurement
from llmfold.methods.method import Notify
from llmfold.models import ModelShape, stock_config
from llmfold.models.casting import load_model
from llmfold.models.context import Context
from llmfold.runtime.devices import compute_dtype
from llmfold.runtime.hidden_states import STATE_FOLDER
from llmfold.runtime.launch import local_world_size
from llmfold.runtime.limits import available_memory, room

BATCH_FOLDER = f"{STATE_FOLDER}/tokens"
_HUB_CHARACTERS_PER_TOKEN = 16
_SECONDS_BETWEEN_NEWS = 2.0


@dataclass(frozen=True)
class TokenSource:
    """Tokens to measure on.

    Attributes:
        measurement: their hidden states.
        tokens: (sequences, length) int64 on the CPU.
        facts: what they are, for the report.
    """

    measurement: Measurement
    tokens: Tensor
    facts: dict[str, Any]


def token_source(context: FoldContext, notify: Notify) -> TokenSource:
    """Sample from the model under ``--method self`` or ``--data self``, else read the text of ``--data``; stored once.

    Raises:
        LlmfoldError: missing data, unusable tokens.
    """
    checkpoint, shape = context.checkpoint, context.shape
    budget, sampled = tk.token_budget(context.config, shape), context.config.samples
    if sampled:
        make, data = partial(_sampled, context, notify), "sampled from the model itself"
    else:
        notify("reading calibration text")
        make = partial(calibration_tokens, context.config, checkpoint.folder, shape)
        data = f"outside text: {Path(str(context.config.data)).name}"
    tokens = tk.stored_tokens(context.work / tk.TOKENS_FILE, make)
    shutil.rmtree(context.work / BATCH_FOLDER, ignore_errors=True)
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
    if sampled:
        facts |= _without_words(checkpoint.folder)
    forward = Context(shape)
    measurement = Measurement(
        forward,
        lambda: forward.embed(checkpoint, tokens, context.device),
        (budget.sequences, budget.length),
        context.work,
        context.device,
        context.team,
    )
    return TokenSource(measurement, tokens, facts)


def _without_words(folder: Path) -> dict[str, str]:
    """What the report must say where no tokenizer tells what words there are."""
    try:
        load_tokenizer(folder)
    except CheckpointError as error:
        reason = str(error).replace(f"{folder}/", "").replace(str(folder), "the model")  # reports name no path
        return {"note": f"the model's own text was sampled with no random words in it: {reason}"}
    return {}


def sample_batches(
    context: FoldContext, notify: Notify, share: Callable[[Sequence[int]], Sequence[int]] = lambda batches: batches
) -> None:
    """Sample this process's batches of documents and store each of them in the work folder as it is finished.

    Args:
        context: where to work.
        notify: told how many tokens this process has sampled.
        share: batches that fall to this process, by number.

    Raises:
        CheckpointError: the model computes NaN or infinity, or nothing says how a document begins.
    """
    sampling, batches = _batches(context)
    mine = share(range(len(batches)))
    missing = [index for index in mine if not _batch_path(context, index).exists()]
    if not missing or (context.work / tk.TOKENS_FILE).exists():
        return
    length = sampling.budget.document_length
    total, left = (length * sum(len(batches[index]) for index in some) for some in (mine, missing))
    count_tokens = _token_counter(notify, total, total - left)
    offload = context.states / f"offload-{mine[0]}"  # states never become part of the output
    cache = max(map(len, batches)) * cache_bytes(stock_config(context.checkpoint.config), length)
    try:
        loading, caches = _placement(context, cache, min(len(batches), local_world_size()), offload)
        model = load_model(context.checkpoint.folder, _dtype(context), context.device, **loading)
        if caches is not None:
            caches.mkdir(parents=True, exist_ok=True)
        sampler = Sampler(context.checkpoint.folder, model, caches)
        for index in missing:
            sample = partial(sampler.sample, sampling, index, batches[index], count_tokens)
            tk.stored_tokens(_batch_path(context, index), sample)
    finally:
        shutil.rmtree(offload, ignore_errors=True)


def _sampled(context: FoldContext, notify: Notify) -> Tensor:
    """All batches in one, sampled here where no process has sampled them yet."""
    sample_batches(context, notify)
    sampling, batches = _batches(context)
    return sampling.budget.cut(
        torch.cat([tk.load_tokens(_batch_path(context, index)) for index in range(len(batches))])
    )


def _batches(context: FoldContext) -> tuple[Sampling, list[range]]:
    config = context.config
    sampling = Sampling(tk.token_budget(config, context.shape), config.seed, config.temperature, mixture=MIXTURE)
    return sampling, sampling.batches(stock_config(context.checkpoint.config))


def _batch_path(context: FoldContext, index: int) -> Path:
    return context.work / BATCH_FOLDER / f"{index:05d}.npy"


def _token_counter(notify: Notify, total: int, done: int) -> Callable[[int], None]:
    """What counts tokens that were drawn, and says now and then how many there are."""
    told = -math.inf

    def count_tokens(drawn: int) -> None:
        nonlocal done, told
        done += drawn
        if time.monotonic() - told >= _SECONDS_BETWEEN_NEWS:
            notify(f"sampling tokens: {done:,} of {total:,}")
            told = time.monotonic()

    count_tokens(0)
    return count_tokens


def _dtype(context: FoldContext) -> torch.dtype:
    return compute_dtype(context.config.compute_dtype, context.device, context.checkpoint.dtype)


def _placement(context: FoldContext, cache: int, processes: int, offload: Path) -> tuple[dict[str, Any], Path | None]:
    """How the model is held while it samples: whole on its device if it fits, else spread by accelerate.

    It is held in the dtype of the arithmetic if there is room, else as stored. What is left for the key/value cache is
    counted first; ``max_memory`` bounds both together. Where the host has no room for both, the cache lies in files,
    which the kernel keeps in memory as it can. Processes that sample on one machine share its memory.

    Returns:
        Arguments of :func:`llmfold.models.casting.load_model`, and the folder of the cache; None where it is in memory.
    """
    limits, device, checkpoint = context.config.memory_limits, context.device, context.checkpoint
    name: int | str = "cpu" if device.type == "cpu" else device.index or 0  # as accelerate calls it
    rooms: dict[int | str, int] = {"cpu": room("cpu", available_memory() // processes, limits)}
    if name != "cpu":
        rooms[name] = room(name, int(torch.cuda.mem_get_info(device)[0]), limits)
    for dtype in (_dtype(context), None):
        if checkpoint.size_in(dtype) + cache <= rooms[name]:
            return {"as_stored": dtype is None}, None
    caches = offload / "cache" if name == "cpu" else None
    if name != "cpu":
        rooms[name] = max(rooms[name] - cache, 0)
    elif checkpoint.size_in(None) <= rooms[name]:
        return {"as_stored": True}, caches
    return {"device_map": "auto", "offload_folder": offload, "max_memory": rooms}, caches


def calibration_tokens(config: FoldConfig, folder: Path, shape: ModelShape) -> Tensor:
    """The head of the text of ``--data``, cut into the sequences that a fold measures on.

    Raises:
        UsageError: the text cannot be read, or is too short.
        CheckpointError: as of :func:`llmfold.data.tokens.token_ids`.
    """
    budget, origin = tk.token_budget(config, shape), str(config.data)
    path, column = Path(origin).expanduser(), config.text_column
    characters = budget.sequences * budget.length * _HUB_CHARACTERS_PER_TOKEN
    text = read_plain_text(path, column, characters) if path.is_file() else _read_dataset(origin, column, characters)
    return tk.text_tokens(folder, text, budget, origin, shape.vocabulary)


def _read_dataset(name: str, column: str, characters: int) -> str:
    """Head of the train split of a hub data set, ``name`` or ``name:config``; documents joined by blank lines."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"--data {name} is no file, and hub data sets {EXTRA}") from error
    repository, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, subset or None, split="train", streaming=True)
        return join_documents(rows, column, characters, f"--data {name}")
    except UsageError:
        raise
    except Exception as error:  # the loader raises whatever its transport and format readers do
        raise UsageError(f"--data {name} is neither a file nor a readable hub data set with a train split") from error
