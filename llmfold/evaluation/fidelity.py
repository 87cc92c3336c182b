"""Fidelity of a folded model to the dense one, which needs no data: both read text sampled from the dense model.

Each model runs once. Final hidden states are kept, not logits, which are larger by vocabulary / hidden; the dense head
turns them into logits a few positions at a time. So the two models are never in memory together.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.data.sampling import Sampler, Sampling
from llmfold.data.tokens import TokenBudget, input_device
from llmfold.errors import CheckpointError, UsageError
from llmfold.evaluation.defaults import FIDELITY_TOKENS
from llmfold.models.casting import decoder_layers
from llmfold.models.context import Context, Ends
from llmfold.models.settings import text_config
from llmfold.models.stock_shape import StockShape
from llmfold.models.tying import running_shape
from llmfold.records.plain import finite
from llmfold.repair.least_squares import relative_error

SEED = 2**40 + 17
"""Of the held-back tokens: none that a person would fold with."""
LENGTH = 64
"""Tokens of a sequence: what sampling costs is one pass a position, however few documents there are."""
_TRACED = 4
"""Sequences whose hidden states after every layer are kept for the errors by layer."""
_LOGIT_BYTES = 64_000_000
"""Logits of one model that are compared at once."""
POOR = 0.5
"""Top-1 agreement below which a person is warned."""


@dataclass(frozen=True)
class Fidelity:
    """How close a model is to the dense one on ``sequences`` of ``tokens`` tokens in all.

    Attributes:
        kl: mean over positions of KL(dense || model) of the next token, in nats.
        top1: fraction of positions where both find the same token most likely.
        layer_errors: after every decoder layer, the relative squared error of the hidden states to the dense model's;
            None where that is no number.
    """

    kl: float
    top1: float
    tokens: int
    sequences: int
    layer_errors: Sequence[float | None] = ()

    @property
    def warning(self) -> str | None:
        """A sentence where the model has moved far from the dense one."""
        if self.top1 >= POOR:
            return None
        return (
            f"the folded model agrees with the dense one on {self.top1:.0%} of next tokens only: expect worse text, "
            "and fold less or measure your task before you rely on it"
        )


@dataclass(frozen=True)
class Reference:
    """What the dense model says about the held-back sequences.

    Attributes:
        tokens: (sequences, length) int64.
        hidden: (sequences, length, d) hidden states that ``logits`` takes, on the CPU.
        logits: from rows of them (t, d), on a device, to (t, vocabulary) there.
        vocabulary: how many tokens there are.
        layers: after every decoder layer, (sequences, length, d) hidden states of the first few sequences, on the CPU.
    """

    tokens: Tensor
    hidden: Tensor
    logits: Callable[[Tensor], Tensor]
    vocabulary: int
    layers: Sequence[Tensor]


def held_back_tokens(
    folder: Path, model: Any, *, tokens: int = FIDELITY_TOKENS, length: int = LENGTH, seed: int = SEED
) -> Tensor:
    """Sample from the dense ``model``, loaded from ``folder``, about ``tokens`` tokens with a seed of their own.

    Sequences are windows of sampled documents as those that a fold measures on, ``length`` long, or as long as the
    model allows if that is less; (sequences, length) int64.
    """
    positions = int(getattr(text_config(model.config), "max_position_embeddings", None) or length)
    length = min(length, positions)
    sequences = max(1, tokens // length)
    budget = TokenBudget.sampled(sequences, length, positions)
    return Sampler(folder, model).sequences(Sampling(budget, seed))


def reference(folder: Path, model: Any, tokens: Tensor, *, batch: int = 8) -> Reference:
    """Run the dense ``model``, loaded from ``folder``, over (sequences, length) ``tokens``."""
    checkpoint = Checkpoint.open(folder)
    shape = running_shape(checkpoint)
    with _traced(model) as layers:
        hidden = [_last_states(model, part.to(input_device(model))) for part in torch.split(tokens, batch)]
    return Reference(tokens, torch.cat(hidden), _ends(checkpoint, shape), shape.vocabulary, layers)


def _ends(checkpoint: Checkpoint, shape: StockShape) -> Callable[[Tensor], Tensor]:
    """Logits of the states after the last layer, by the stock model's own end."""
    ends: dict[torch.device, Ends] = {}

    def logits(states: Tensor) -> Tensor:
        if states.device not in ends:
            ends[states.device] = Context(shape).ends(checkpoint, states.device)
        return ends[states.device].logits(states.float())

    return logits


def _last_states(model: Any, tokens: Tensor) -> Tensor:
    """Hidden states after the last decoder layer, on the CPU."""
    kept: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).cpu())

    hook = decoder_layers(model)[-1].register_forward_hook(keep)
    try:
        model(tokens, use_cache=False)
    finally:
        hook.remove()
    return kept[0]


@contextmanager
def _traced(model: Any) -> Iterator[list[Tensor]]:
    """Gather, on the CPU, the hidden states of the first few sequences after every decoder layer as the model runs."""
    batches: list[list[Tensor]] = [[] for _ in decoder_layers(model)]
    hidden: list[Tensor] = []

    def keep(kept: list[Tensor], _module: Any, _inputs: Any, output: Any) -> None:
        missing = _TRACED - sum(map(len, kept))
        if missing:
            kept.append((output[0] if isinstance(output, tuple) else output)[:missing].cpu())

    layers = zip(decoder_layers(model), batches, strict=True)
    hooks = [layer.register_forward_hook(partial(keep, kept)) for layer, kept in layers]
    try:
        yield hidden
    finally:
        for hook in hooks:
            hook.remove()
    hidden.extend(map(torch.cat, batches))


def _layer_errors(dense: Sequence[Tensor], model: Sequence[Tensor]) -> list[float | None]:
    """Relative squared errors of the hidden states after every layer; none where there are fewer layers than before."""
    if len(dense) != len(model):
        return []
    errors: list[float | None] = finite(
        [
            relative_error(*(float(x.double().square().sum()) for x in (new.double() - old.double(), old)))
            for old, new in zip(dense, model, strict=True)
        ]
    )
    return errors


def check_vocabularies(dense: int, model: int) -> None:
    """Raise UsageError where two models, of so many tokens each, cannot be compared token by token."""
    if dense != model:
        raise UsageError(
            f"the models do not share a vocabulary ({dense} and {model} tokens): "
            "compare a model with the one it was folded from"
        )


def fidelity(dense: Reference, model: Any, *, batch: int = 8) -> Fidelity:
    """Compare a loaded model with the dense one.

    Raises:
        UsageError: the two have different vocabularies.
        CheckpointError: the model computes NaN or infinity.
    """
    check_vocabularies(dense.vocabulary, int(text_config(model.config).vocab_size))
    total, agreed, device = 0.0, 0, input_device(model)
    rows = max(1, _LOGIT_BYTES // (4 * dense.vocabulary))
    with _traced(model) as layers:
        for part, hidden in zip(torch.split(dense.tokens, batch), torch.split(dense.hidden, batch), strict=True):
            logits = model(part.to(input_device(model)), use_cache=False).logits
            pairs = zip(torch.split(hidden.flatten(0, 1), rows), torch.split(logits.flatten(0, 1), rows), strict=True)
            for states, model_logits in pairs:
                p = dense.logits(states.to(device)).float().log_softmax(-1)
                q = model_logits.to(device).float().log_softmax(-1)
                total += float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).double().sum())
                agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
    count = dense.tokens.numel()
    if not math.isfinite(total):
        raise CheckpointError(
            "a model computes NaN or infinity on text of the dense model, so there is no KL between them"
        )
    errors = _layer_errors(dense.layers, layers)
    return Fidelity(max(0.0, total / count), agreed / count, count, len(dense.tokens), errors)
