"""Token sequences for the methods that measure: sampled from the model itself, or cut from a text the user names."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.architectures import ModelShape, stock_config
from llmfold.checkpoint import Checkpoint
from llmfold.config import SELF_DATA, FoldConfig
from llmfold.errors import UsageError
from llmfold.methods import tokens as tk
from llmfold.methods.measure import Measurement
from llmfold.methods.streams import TokenStream
from llmfold.plain_text import UNREADABLE, read_plain_text
from llmfold.planning.estimate import cache_limit
from llmfold.planning.limits import available_memory, room
from llmfold.streaming.forward import forward_context
from llmfold.streaming.team import Team

_HUB_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Setting:
    """Where a method works: the source, the work folder, the device, and the processes that share the work."""

    config: FoldConfig
    checkpoint: Checkpoint
    shape: ModelShape
    work: Path
    device: torch.device
    team: Team = field(default_factory=Team)


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
    config, checkpoint, shape = setting.config, setting.checkpoint, setting.shape
    positions = int(stock_config(checkpoint.config).max_position_embeddings)
    budget = tk.token_budget(shape, positions, config.num_samples, config.sequence_length)
    sampled = SELF_DATA in (config.method, config.data)
    if sampled:
        say("sampling tokens from the model")
        make, data = lambda: _sampled(setting, budget), "sampled from the model itself"
    else:
        say("reading calibration text")
        make, data = lambda: _calibration(setting, budget), f"outside text: {Path(str(config.data)).name}"
    tokens = tk.stored(setting.work / tk.TOKENS_FILE, make)
    quality = tk.quality(tokens)
    facts = {
        "data": data,
        "sequences": budget.sequences,
        "sequence_length": budget.length,
        "sampled_length": budget.sampled if sampled else None,
        "tokens_sha256": tk.digest(tokens),
        "token_quality": quality,
        "warning": tk.doubt(quality) if sampled else None,
    }
    on = Measurement(
        shape,
        TokenStream(forward_context(checkpoint.config, shape)),
        lambda: tk.embedded(checkpoint, tokens, setting.device),
        (budget.sequences, budget.length),
        setting.work,
        setting.device,
        setting.team,
    )
    return TokenSource(on, tokens, facts)


def _sampled(setting: Setting, budget: tk.TokenBudget) -> Tensor:
    offload = setting.work / "offload"
    loading = _placement(setting, budget, offload)
    try:
        return tk.sample_tokens(
            setting.checkpoint.folder,
            budget,
            setting.config.seed,
            setting.device,
            temperature=setting.config.temperature,
            cache_limit=cache_limit(setting.config, _device_name(setting.device)),
            **loading,
        )
    finally:
        shutil.rmtree(offload, ignore_errors=True)


def _device_name(device: torch.device) -> int | str:
    """What accelerate calls a device."""
    return "cpu" if device.type == "cpu" else device.index or 0


def _placement(setting: Setting, budget: tk.TokenBudget, offload: Path) -> dict[str, Any]:
    """Where the model is held while it samples: whole on its device if it fits, else spread by accelerate.

    What is left for the key/value cache is counted first; ``max_memory`` bounds model and cache together.
    """
    limits, device = setting.config.memory_limits, setting.device
    own = _device_name(device)
    size = sum(t.nbytes for t in setting.checkpoint.tensors.values())
    stock = stock_config(setting.checkpoint.config)
    cache = min(cache_limit(setting.config, own), budget.sequences * tk.cache_bytes(stock, budget.sampled))
    rooms: dict[int | str, int] = {"cpu": room("cpu", available_memory(), limits)}
    if own != "cpu":
        rooms[own] = room(own, int(torch.cuda.mem_get_info(device)[0]), limits)
    rooms[own] = max(rooms[own] - cache, 0)
    if size <= rooms[own]:
        return {}
    return {"device_map": "auto", "offload_folder": offload, "max_memory": rooms}


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
