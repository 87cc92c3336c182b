"""Speed and size that were really gained: two models, each in a process of its own, timed in turn.

Separate processes keep each model's memory its own; taking turns lets whatever else the machine does fall on both.
"""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.dtypes import dtype_name
from llmfold.data.tokens import input_device
from llmfold.errors import CheckpointError, UsageError
from llmfold.evaluation.loading import Loading, max_positions, opened
from llmfold.evaluation.workers import answering, in_turn, worker
from llmfold.models import shape_of
from llmfold.runtime.memory import peak_resident_bytes

GAIN = 1.03
"""Ratio of speeds below which nothing is claimed: repeated runs differ by as much."""
MANY = 8
"""Sequences at once of the second timing, as a small server has them."""
_ROUND_WIDTH = 64
_LIBRARIES = ("transformers.modeling_utils", "transformers.models.auto.modeling_auto")
"""What loading a model would import first: it takes seconds, and is no property of the model."""


@dataclass(frozen=True)
class SpeedSettings:
    """What is timed.

    Attributes:
        batch: sequences at once.
        prompt: tokens read in one forward pass.
        new: tokens then written one after another.
        rounds: medians over them are reported.
    """

    batch: int = 1
    prompt: int = 128
    new: int = 32
    rounds: int = 5


@dataclass(frozen=True)
class ModelSpeed:
    """One model.

    Attributes:
        prefill: prompt tokens per second, median over rounds.
        decode: written tokens per second, median over rounds.
        peak_memory_bytes: largest resident set of the process, libraries included; on a GPU, memory taken there.
        disk_bytes: size of its weights' files.
        many_prefill: as ``prefill``, of :data:`MANY` sequences at once; None in results of earlier versions.
        many_decode: as ``decode``, of so many.
        load_seconds: from the files to a model that answers, once, the libraries being imported.
    """

    prefill: float
    decode: float
    peak_memory_bytes: int
    disk_bytes: int
    many_prefill: float | None = None
    many_decode: float | None = None
    load_seconds: float | None = None


@dataclass(frozen=True)
class Speed:
    """A model beside the dense one, what to make of it in a sentence or two, and the dtype in which both ran."""

    model: ModelSpeed
    dense: ModelSpeed
    prefill_ratio: float
    decode_ratio: float
    verdict: str
    protocol: str
    dtype: str
    many_prefill_ratio: float | None = None
    many_decode_ratio: float | None = None


def speed(model: Path, dense: Path, loading: Loading, settings: SpeedSettings, *, remote_code: bool = False) -> Speed:
    """Time two models in turn.

    Args:
        model: folder of the folded model.
        dense: folder of the model it was folded from.
        loading: dtype and device of both.
        settings: what is timed.
        remote_code: whether the folded model's own modelling file may run.

    Returns:
        Medians of each, and the medians over rounds of their ratios.

    Raises:
        UsageError: more tokens than a model has positions.
        CheckpointError: a model cannot be loaded, or its process died.
    """
    total = settings.prompt + settings.new
    positions = min(max_positions(Checkpoint.open(folder)) for folder in (model, dense))
    if total > positions:
        raise UsageError(
            f"--prompt-tokens and --new-tokens make {total} tokens, but the model has {positions} positions"
        )
    both = (dense, model)
    with ExitStack() as stack:
        threads = torch.get_num_threads()
        asks = [
            stack.enter_context(
                worker(folder.name, _serve, folder, loading, settings, remote_code and folder == model, threads)
            )
            for folder in both
        ]
        loads = [float(ask("load")) for ask in asks]
        _, *rounds = in_turn(asks, "round", 1 + settings.rounds)  # the first is slower than all that follow
        many = in_turn(asks, "many", settings.rounds)
        memory = [int(ask("memory")) for ask in asks]
    dense_speed, model_speed = (
        ModelSpeed(
            *medians(rounds, i),
            memory[i],
            sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            *medians(many, i),
            loads[i],
        )
        for i, folder in enumerate(both)
    )
    prefill, decode = ratios(rounds)
    dtype = _dtype_words(loading, dense, model)
    protocol, verdict = _protocol(dtype, loading.device, settings), _verdict(model, prefill, decode)
    return Speed(model_speed, dense_speed, prefill, decode, verdict, protocol, dtype, *ratios(many))


def medians(rounds: list[list[tuple[float, float]]], side: int) -> tuple[float, float]:
    """Medians over rounds of the prefill and the decode of one side."""
    prefill, decode = (statistics.median(each[side][part] for each in rounds) for part in (0, 1))
    return prefill, decode


def ratios(rounds: list[list[tuple[float, float]]]) -> tuple[float, float]:
    """Medians over rounds of how much faster the second of two sides is, in prefill and in decode."""
    prefill, decode = (statistics.median(each[1][part] / each[0][part] for each in rounds) for part in (0, 1))
    return prefill, decode


def _dtype_words(loading: Loading, *folders: Path) -> str:
    """``float32``, or ``bfloat16 as stored``; both names where the models are stored differently."""
    if loading.dtype is not None:
        return loading.words
    names = dict.fromkeys(dtype_name(Checkpoint.open(folder).dtype) for folder in folders)
    return f"{' and '.join(names)} as stored"


def _protocol(dtype: str, device: torch.device, settings: SpeedSettings) -> str:
    return (
        f"{settings.prompt} prompt tokens and {settings.new} written greedily, batch {settings.batch} and {MANY}, "
        f"{dtype}, {device.type}, each model in a "
        f"process of its own, timed in turn, medians of {settings.rounds} rounds"
    )


def _verdict(folder: Path, prefill: float, decode: float) -> str:
    """Say plainly what was gained, and why nothing was if nothing was."""
    gains = [
        f"{what} {ratio:.2f} times as fast" if ratio >= GAIN else f"{what} gains nothing ({ratio:.2f} times as fast)"
        for what, ratio in (("prefill", prefill), ("decode", decode))
    ]
    if min(prefill, decode) >= GAIN:
        return "; ".join(gains)
    shape = shape_of(Checkpoint.open(folder).config)
    odd = sorted({layer.intermediate for layer in shape.layers if layer.intermediate % _ROUND_WIDTH})
    if shape.hidden < 1024:
        why = f"at a hidden size of {shape.hidden} the time goes into starting operations, not into arithmetic"
    elif odd:
        why = f"an MLP width of {odd[0]} is no multiple of {_ROUND_WIDTH}, which matrix kernels want: see --multiple-of"
    else:
        why = "the time of this batch goes elsewhere than into the layers' matrices; try another batch size"
    return f"{'; '.join(gains)}: {why}"


def _serve(
    connection: Connection, folder: Path, loading: Loading, settings: SpeedSettings, remote_code: bool, threads: int
) -> None:
    """Hold a model, and answer ``load``, ``round``, ``many`` and ``memory``."""
    torch.set_num_threads(threads)
    with answering(connection, folder.name) as answer:
        for name in _LIBRARIES:
            import_module(name)
        begin = time.perf_counter()
        with opened(folder, loading, remote_code=remote_code, checked=False) as model:
            seconds = time.perf_counter() - begin
            answer(
                {
                    "load": lambda: seconds,
                    "round": partial(_round, model, settings),
                    "many": partial(_round, model, replace(settings, batch=MANY)),
                    "memory": partial(_peak, loading.device),
                }
            )


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def _round(model: Any, settings: SpeedSettings) -> tuple[float, float]:
    """Tokens per second of one prefill and of the decoding after it."""
    device = input_device(model)
    start = model.config.bos_token_id if isinstance(model.config.bos_token_id, int) else 0
    prompt = torch.full((settings.batch, settings.prompt), start, device=device)
    _synchronize(device)
    begin = time.perf_counter()
    out = model(prompt, use_cache=True, logits_to_keep=1)
    if not hasattr(out, "past_key_values"):
        raise CheckpointError(
            f"{type(model).__name__} hands no cache on, so it is not timed: leave speed out of --tasks"
        )
    token = out.logits[:, -1:].argmax(-1)
    _synchronize(device)
    middle = time.perf_counter()
    for _ in range(settings.new):
        out = model(token.to(device), past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    _synchronize(device)
    end = time.perf_counter()
    return prompt.numel() / (middle - begin), settings.batch * settings.new / (end - middle)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
