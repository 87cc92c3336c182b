"""From options to a method ready to run."""

import dataclasses
import lzma
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.architectures import ModelShape, stock_config
from llmfold.checkpoint import Checkpoint
from llmfold.config import FoldConfig
from llmfold.errors import UsageError
from llmfold.methods import tokens as tk
from llmfold.methods.activations import ActivationFolder, ActivationOptions
from llmfold.methods.base import LayerMethod
from llmfold.methods.merging import Merging
from llmfold.methods.population import Population, PopulationOptions
from llmfold.methods.streams import CHUNK, PopulationStream, TokenStream
from llmfold.repair.refine import RefineOptions
from llmfold.streaming.forward import forward_context

_IN_MEMORY_SHARE = 0.6
_HUB_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Setting:
    """Where a method works: the source, the work folder and the device."""

    config: FoldConfig
    checkpoint: Checkpoint
    shape: ModelShape
    work: Path
    device: torch.device


@dataclass
class Projection:
    """An activation method with what it did before the first layer."""

    folder: ActivationFolder
    facts: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Delegate the layers."""
        self.start, self.fold = self.folder.start, self.folder.fold
        self.flush, self.committed = self.folder.flush, self.folder.committed

    def summary(self) -> dict[str, Any]:
        """Data used, tokens and their quality."""
        return self.facts


def build_method(setting: Setting, say: Callable[[str], None]) -> LayerMethod:
    """Prepare the method of ``setting.config``; sampling happens here, once, and is stored in the work folder.

    Args:
        setting: where to work.
        say: told of every stage.

    Raises:
        LlmfoldError: missing data, unusable tokens.
    """
    method = setting.config.method
    if method == "paper":
        return Merging(setting.config, setting.shape, setting.device)
    if method == "weights":
        return _from_weights(setting, say)
    return _from_tokens(setting, say)


def _refine(config: FoldConfig, default: int) -> RefineOptions:
    return RefineOptions(steps=default if config.refine is None else config.refine)


def _from_tokens(setting: Setting, say: Callable[[str], None]) -> Projection:
    config, checkpoint, shape = setting.config, setting.checkpoint, setting.shape
    positions = int(stock_config(checkpoint.config).max_position_embeddings)
    budget = tk.token_budget(shape, positions, config.num_samples, config.sequence_length)
    begin = time.perf_counter()
    if config.method == "self":
        say("sampling tokens from the model")
        make, data = lambda: _sampled(setting, budget), "sampled from the model itself"
    else:
        say("reading calibration text")
        make, data = lambda: _calibration(setting, budget), f"outside text: {Path(str(config.data)).name}"
    tokens = tk.stored(setting.work / tk.TOKENS_FILE, make)
    facts = {
        "data": data,
        "sequences": budget.sequences,
        "sequence_length": budget.length,
        "tokens_sha256": tk.digest(tokens),
        "token_quality": tk.quality(tokens),
    }
    stream = TokenStream(forward_context(checkpoint.config, shape))
    options = ActivationOptions(refine=_refine(config, default=4), seed=config.seed)
    folder = ActivationFolder(
        shape,
        stream,
        lambda: tk.embedded(checkpoint, tokens, setting.device),
        (budget.sequences, budget.length),
        setting.work,
        setting.device,
        options,
    )
    return Projection(folder, facts, {"tokens": time.perf_counter() - begin})


def _sampled(setting: Setting, budget: tk.TokenBudget) -> Tensor:
    loading: dict[str, Any] = {}
    offload = setting.work / "offload"
    size = sum(t.nbytes for t in setting.checkpoint.tensors.values())
    if setting.device.type == "cpu" and size > _IN_MEMORY_SHARE * _available_memory():
        loading = {"device_map": "auto", "offload_folder": offload}
    try:
        return tk.sample_tokens(setting.checkpoint.folder, budget, setting.config.seed, setting.device, **loading)
    finally:
        shutil.rmtree(offload, ignore_errors=True)


def _available_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _calibration(setting: Setting, budget: tk.TokenBudget) -> Tensor:
    origin = str(setting.config.data)
    path = Path(origin).expanduser()
    characters = budget.sequences * budget.length * _HUB_CHARACTERS_PER_TOKEN
    text = _read_text(path, characters) if path.is_file() else _read_dataset(origin, characters)
    return tk.text_tokens(setting.checkpoint.folder, text, budget, origin)


def _read_text(path: Path, characters: int) -> str:
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
            return file.read(characters)
    except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
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


def _from_weights(setting: Setting, say: Callable[[str], None]) -> Projection:
    config, checkpoint, shape = setting.config, setting.checkpoint, setting.shape
    context = forward_context(checkpoint.config, shape)
    stream = PopulationStream(dataclasses.replace(context, windows=(None,) * len(context.windows)), config.seed)
    mean_field = PopulationOptions()
    population = Population(checkpoint, shape, stream, setting.device, mean_field)
    begin = time.perf_counter()
    say("token prior from the weights")
    with torch.inference_mode():
        prior = population.prior()
        metric = population.output_metric(prior)
    widest = max(max(layer.intermediate, layer.heads * shape.head_dim) for layer in shape.layers)
    members = max(16384, tk.TOKENS_PER_UNIT * widest)
    rows = -(-members // (mean_field.context * CHUNK)) * CHUNK
    options = ActivationOptions(
        ridge=1e-4, refine=_refine(config, default=0), gaussian=0.2, metric=metric, seed=config.seed
    )
    folder = ActivationFolder(
        shape,
        stream,
        lambda: population.draw(prior, rows, salt=mean_field.prior_rounds),
        (rows, mean_field.context),
        setting.work,
        setting.device,
        options,
    )
    entropy = float(-(prior * prior.clamp_min(1e-300).log()).sum())
    facts = {"data": "none", "members": rows * mean_field.context, "prior_entropy_nats": entropy}
    return Projection(folder, facts, {"prior": time.perf_counter() - begin})
