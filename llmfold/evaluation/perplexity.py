"""Perplexity as papers measure it, with the protocol in words beside every number.

One stream of tokens for the whole text, the tokenizer adding BOS at its very start if it does; windows of equal length
that do not overlap, the tail dropped; every window scored without context, so its first token is not predicted. This is
the protocol of GPTQ, SparseGPT, Wanda, FLAP and SliceGPT on WikiText-2. A stride shorter than the window gives the
sliding window of transformers' documentation instead, where a token counts in the first window that holds it.

Not handled: word or byte perplexity (lm-eval's), which divide by another count.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.dtypes import dtype_name
from llmfold.data.texts import Text
from llmfold.data.tokenizer import load_tokenizer
from llmfold.data.tokens import input_device, token_ids
from llmfold.errors import CheckpointError, UsageError
from llmfold.evaluation.defaults import BATCH
from llmfold.evaluation.loading import max_positions
from llmfold.models import stock_config
from llmfold.models.settings import text_config

PAPER_LENGTH = 2048


@dataclass(frozen=True)
class Windows:
    """What is scored, the same for every model of a comparison.

    Attributes:
        tokens: (windows, length) int64.
        stride: tokens from the start of one window to the start of the next.
        protocol: all of this in words.
    """

    tokens: Tensor
    stride: int
    protocol: str


@dataclass(frozen=True)
class Perplexity:
    """exp(nll), where nll is the mean negative log-likelihood in nats of ``tokens`` predicted tokens."""

    value: float
    nll: float
    tokens: int
    windows: int
    protocol: str


def token_stream(folder: Path, text: Text, vocabulary: int | None = None) -> Tensor:
    """(tokens,) int64 of the text, see :func:`llmfold.data.tokens.token_ids`."""
    return token_ids(folder, text.content, vocabulary)


def cut_windows(stream: Tensor, length: int, *, stride: int | None = None, limit: int | None = None) -> Tensor:
    """Cut a stream into at most ``limit`` windows, the tail dropped; returns (windows, length).

    Raises:
        UsageError: the stream is shorter than one window.
    """
    if len(stream) < length:
        raise UsageError(f"the text holds {len(stream)} tokens but one window takes {length}: pass a longer text")
    return stream.unfold(0, length, stride or length)[:limit]


def text_windows(
    folder: Path,
    text: Text,
    reader: Path | None = None,
    /,
    *,
    length: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> Windows:
    """Cut ``text`` into windows for the model in ``folder``.

    Args:
        folder: gives the maximum number of positions.
        text: what to measure on.
        reader: folder that gives the tokenizer; None for ``folder``.
        length: tokens in a window; None: 2,048, or the model's maximum if that is less.
        stride: None for windows that do not overlap.
        limit: most windows, from the head of the text; None for all.

    Raises:
        UsageError: a length that the model or the text does not allow, a stride longer than the window.
        CheckpointError: the tokenizer is not the model's.
    """
    checkpoint = Checkpoint.open(folder)
    positions = max_positions(checkpoint)
    length = length or min(PAPER_LENGTH, positions)
    if not 2 <= length <= positions:
        raise UsageError(f"--sequence-length {length} must lie between 2 and the model's maximum of {positions}")
    if stride is not None and not 1 <= stride <= length:
        raise UsageError(f"--stride {stride} must lie between 1 and the sequence length, {length}")
    if limit is not None and limit < 1:
        raise UsageError(f"--windows {limit} leaves nothing to score: give at least 1")
    reader = reader or folder
    stream = token_stream(reader, text, int(text_config(stock_config(checkpoint.config)).vocab_size))
    tokens = cut_windows(stream, length, stride=stride, limit=limit)
    stride = stride or length
    return Windows(tokens, stride, _protocol(reader, text, stream, tokens, stride))


def _protocol(folder: Path, text: Text, stream: Tensor, tokens: Tensor, stride: int) -> str:
    bos = load_tokenizer(folder).bos_token_id
    begins = "BOS at its start" if bos is not None and int(stream[0]) == bos else "no BOS"
    count, length = tokens.shape
    overlap = "non-overlapping windows" if stride == length else f"windows at stride {stride}"
    total = (len(stream) - length) // stride + 1
    which = "all" if count == total else f"the first {count} of"
    return (
        f"{text.name} (SHA-256 {text.sha256[:12]}…), one stream of {len(stream):,} tokens with {begins}, "
        f"{which} {total:,} {overlap} of {length:,} tokens, tail dropped"
    )


def score(model: Any, windows: Windows, *, batch: int = BATCH) -> Perplexity:
    """Perplexity of a loaded model.

    Args:
        model: a causal language model of transformers in evaluation mode.
        windows: what to score.
        batch: windows in one forward pass.

    Raises:
        CheckpointError: the model computes NaN or infinity.
    """
    count, length = windows.tokens.shape
    fresh = min(windows.stride, length - 1)
    total = 0.0
    for index, part in enumerate(torch.split(windows.tokens, batch)):
        logits = model(part.to(input_device(model)), use_cache=False).logits
        targets = part[:, 1:].to(logits.device)
        for row in range(len(part)):  # one window at a time in float32: logits are the largest tensors by far
            loss = F.cross_entropy(logits[row, :-1].float(), targets[row], reduction="none")
            total += float((loss if index == row == 0 else loss[-fresh:]).double().sum())
    tokens = length - 1 + (count - 1) * fresh
    nll = total / tokens
    if not math.isfinite(nll):
        raise CheckpointError("the model computes NaN or infinity on this text, so it has no perplexity")
    value = math.exp(min(nll, 700.0))  # larger ones are no float
    precision = dtype_name(logits.dtype)
    return Perplexity(value, nll, tokens, count, f"{windows.protocol}; {tokens:,} predicted tokens, {precision}")
