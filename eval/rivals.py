"""Rivals that no folder of stock transformers holds, or no fold makes: changed in memory, scored as folds are."""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from keeping import store
from real_model import RESULTS, Case, windows_of
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.config import FoldConfig
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.perplexity import score
from llmfold.methods.base import FoldContext
from llmfold.methods.source import token_source
from llmfold.models import ModelShape, shape_of
from llmfold.models.tying import running_shape
from llmfold.runtime.devices import pick_device

Change = Callable[[Any, Tensor, ModelShape], Mapping[str, Any]]
"""Changes a model of transformers in place, measuring on tokens (sequences, length); says what went, for the result."""


def calibration_tokens(config: FoldConfig) -> Tensor:
    """(sequences, tokens) of the text that a fold with these options would measure on."""
    checkpoint = Checkpoint.open(Path(config.model))
    with tempfile.TemporaryDirectory(prefix="llmfold-") as work:
        shape = running_shape(checkpoint)
        context = FoldContext(config, checkpoint, shape, Path(work), torch.device("cpu"))
        return token_source(context, lambda stage: None).tokens


def config_of(arguments: argparse.Namespace) -> FoldConfig:
    """Options of a fold that removes as much after measuring on the same tokens."""
    drawn = {name: getattr(arguments, name) for name in ("data", "num_samples", "sequence_length", "seed")}
    return FoldConfig(str(arguments.folder), method="calibrated", ratio=arguments.fraction, ratio_of="decoder", **drawn)


def case_of(arguments: argparse.Namespace, method: str, *flags: str) -> Case:
    """The options of a run, and the ``flags`` that are set, as a case of the table."""
    names = ("fraction", "data", "num_samples", "sequence_length")
    options = [f"{name}={getattr(arguments, name)}" for name in names]
    options += [f"{flag}=true" for flag in flags if getattr(arguments, flag)]
    return Case(f"{method}:{','.join(options)}", arguments.seed)


def run(arguments: argparse.Namespace, case: Case, change: Change) -> None:
    """Change and score the model, unless the result is there already."""
    path = RESULTS / arguments.name / case.file
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    windows = dict(windows_of(arguments.folder, text, arguments.length) for text in arguments.text)
    shape = shape_of(Checkpoint.open(arguments.folder).config)
    begin = time.perf_counter()
    tokens = calibration_tokens(config_of(arguments))
    with opened(arguments.folder, Loading(torch.float32, pick_device(arguments.device))) as model:
        changed = change(model, tokens, shape)
        seconds = time.perf_counter() - begin
        print(f"{changed} after {seconds:.0f} s", flush=True)
        left = sum(parameter.numel() for parameter in model.parameters())
        nll = {name: score(model, of_text).nll for name, of_text in windows.items()}
    result = {
        "case": case.public,
        "removed": 1 - left / shape.parameters,
        **changed,
        "seconds": seconds,
        "nll": nll,
        "tasks": {},
        "protocols": {name: of_text.protocol for name, of_text in windows.items()},
        "length": arguments.length,
        "note": arguments.note,
    }
    store(path, result)
    print(", ".join(f"{name} {math.exp(value):.2f}" for name, value in nll.items()), flush=True)


def describe(runs: argparse.ArgumentParser) -> None:
    """Options that all of them have."""
    runs.add_argument("--text", action="append", required=True, help="FILE:FIRST-LAST, windows to score")
    runs.add_argument("--data", required=True, help="text to calibrate on")
    runs.add_argument("--num-samples", type=int, default=128, help="sequences to calibrate on")
    runs.add_argument("--sequence-length", type=int, default=256, help="tokens of a sequence")
    runs.add_argument("--fraction", type=float, required=True, help="of the decoder's parameters to remove")
    runs.add_argument("--seed", type=int, default=0, help="for the table: nothing here is random")
