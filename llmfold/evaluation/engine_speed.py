"""Speed in llama.cpp: two models as GGUF files, each in a process of its own, timed in turn."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from llmfold.errors import CheckpointError, LlmfoldError
from llmfold.evaluation.llama_cpp import llama_cpp
from llmfold.evaluation.speed import SpeedSettings, medians, ratios
from llmfold.evaluation.workers import answering, in_turn, worker
from llmfold.export.options import ExportSettings

_ANY = "gpt-2"
"""A pre-tokenizer for files that are only timed, where llama.cpp does not know the model's own."""


@dataclass(frozen=True)
class FileSpeed:
    """One file.

    Attributes:
        prefill: prompt tokens per second, median over rounds.
        decode: written tokens per second, median over rounds.
        load_seconds: to load it, once.
        file_bytes: its size.
    """

    prefill: float
    decode: float
    load_seconds: float
    file_bytes: int


@dataclass(frozen=True)
class EngineSpeed:
    """Two models in llama.cpp, how they were timed, and in what type; no numbers where a model cannot be exported."""

    protocol: str
    dtype: str = ""
    model: FileSpeed | None = None
    dense: FileSpeed | None = None
    prefill_ratio: float = 0.0
    decode_ratio: float = 0.0


def engine_speed_of(content: Mapping[str, Any]) -> EngineSpeed:
    """Speeds that were saved as plain data."""
    sides = {side: FileSpeed(**content[side]) if content[side] else None for side in ("model", "dense")}
    return EngineSpeed(**{**content, **sides})


def llama_cpp_speed(model: Path, dense: Path, settings: SpeedSettings) -> EngineSpeed:
    """Time two models as they are stored, one sequence at once.

    Args:
        model: folder of the folded model.
        dense: folder of the model it was folded from.
        settings: how many tokens and rounds.

    Returns:
        Medians of each, and the medians over rounds of their ratios; or the reason why there are none.
    """
    try:
        return _timed(model, dense, settings)
    except LlmfoldError as error:
        return EngineSpeed(f"not timed: {error}")


def _timed(model: Path, dense: Path, settings: SpeedSettings) -> EngineSpeed:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files, kinds = [], []
        for source, name in ((dense, "dense.gguf"), (model, "model.gguf")):
            files.append(Path(folder) / name)
            kinds.append(_export(source, files[-1]))
        asks = [
            stack.enter_context(worker(file.name, _serve, file, settings, torch.get_num_threads())) for file in files
        ]
        loads = [float(ask("load")) for ask in asks]
        _, *rounds = in_turn(asks, "round", 1 + settings.rounds)
        dense_speed, model_speed = (
            FileSpeed(*medians(rounds, i), loads[i], file.stat().st_size) for i, file in enumerate(files)
        )
    protocol = (
        f"{settings.prompt} prompt tokens and {settings.new} written, one sequence, CPU, by its own clock, timed in "
        f"turn, medians of {settings.rounds} rounds"
    )
    return EngineSpeed(protocol, " and ".join(dict.fromkeys(kinds)), model_speed, dense_speed, *ratios(rounds))


def _export(source: Path, file: Path) -> str:
    """Write a checkpoint as it is stored; returns the type."""
    from llmfold.export.writer import export_gguf  # needs the package gguf

    settings = partial(ExportSettings, str(source), str(file))
    try:
        return export_gguf(settings(), _silent).type
    except CheckpointError as reason:  # its tokenizer, perhaps, which speed does not depend on
        try:
            return export_gguf(settings(pre=_ANY), _silent).type
        except LlmfoldError:
            raise reason from None


def _silent(_: str) -> None:
    return None


def _serve(connection: Connection, file: Path, settings: SpeedSettings, threads: int) -> None:
    """Hold a file in llama.cpp, and answer ``load`` and ``round``."""
    with answering(connection, file.name) as answer:
        begin = time.perf_counter()
        with llama_cpp(file, settings.prompt + settings.new + 1, threads) as engine:
            seconds = time.perf_counter() - begin
            prompt = [1] * settings.prompt
            answer({"load": lambda: seconds, "round": partial(engine.speeds, prompt, settings.new)})
