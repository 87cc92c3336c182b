"""Fidelity of a folded model to the dense one, which needs no data: both read text sampled from the dense model.

The dense model runs once. Its final hidden states are kept, not its logits, which are larger by vocabulary / hidden;
the head turns them back into logits one sequence at a time. So the two models are never in memory together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.architectures import EMBEDDING, HEAD, shape_of
from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError, UsageError
from llmfold.evaluation.loading import Loading, max_positions, placed
from llmfold.methods.sampling import Sampling, sample_tokens
from llmfold.methods.tokens import TokenBudget, input_device

SEED = 2**40 + 17
"""Of the held-back tokens: none that a person would fold with."""
TOKENS = 8192
LENGTH = 256
_TRACED = 4
"""Sequences whose hidden states after every layer are kept for the errors by layer."""
POOR = 0.5
"""Top-1 agreement below which a person is warned."""


@dataclass(frozen=True)
class Fidelity:
    """How close a model is to the dense one on ``sequences`` of ``tokens`` tokens in all.

    Attributes:
        kl: mean over positions of KL(dense || model) of the next token, in nats.
        top1: fraction of positions where both find the same token most likely.
        layer_errors: after every decoder layer, the relative squared error of the hidden states to the dense model's.
    """

    kl: float
    top1: float
    tokens: int
    sequences: int
    layer_errors: Sequence[float] = ()

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
        hidden: (sequences, length, d) final hidden states, normalised, on the CPU.
        head: (vocabulary, d) output embedding, on the CPU.
        layers: after every decoder layer, (sequences, length, d) hidden states of the first few sequences, on the CPU.
    """

    tokens: Tensor
    hidden: Tensor
    head: Tensor
    layers: Sequence[Tensor]


def held_back_tokens(
    folder: Path, loading: Loading, *, tokens: int = TOKENS, length: int = LENGTH, seed: int = SEED
) -> Tensor:
    """Sample from the model in ``folder`` about ``tokens`` tokens with a seed of their own; (sequences, length) int64.

    Sequences are ``length`` long, or as long as the model allows if that is less.
    """
    length = min(length, max_positions(Checkpoint.open(folder)))
    budget = TokenBudget(max(1, tokens // length), length)
    with placed(folder, loading) as options:
        return sample_tokens(folder, Sampling(budget, seed), loading.device, **options)


def reference(folder: Path, model: Any, tokens: Tensor, *, batch: int = 8) -> Reference:
    """Run the dense ``model``, loaded from ``folder``, over (sequences, length) ``tokens``."""
    hidden = [
        model.base_model(part.to(input_device(model)), use_cache=False)[0].cpu() for part in torch.split(tokens, batch)
    ]
    checkpoint = Checkpoint.open(folder)
    tied = shape_of(checkpoint.config).tied or HEAD not in checkpoint.tensors
    head = checkpoint.read(EMBEDDING if tied and EMBEDDING in checkpoint.tensors else HEAD)
    return Reference(tokens, torch.cat(hidden), head.to(hidden[0].dtype), _layer_outputs(model, tokens[:_TRACED]))


def _layer_outputs(model: Any, tokens: Tensor) -> list[Tensor]:
    """Hidden states after every decoder layer, on the CPU."""
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).cpu())

    hooks = [layer.register_forward_hook(keep) for layer in model.base_model.layers]
    try:
        model.base_model(tokens.to(input_device(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _layer_errors(dense: Reference, model: Any) -> list[float]:
    """Relative squared errors of the hidden states after every layer."""
    found = _layer_outputs(model, dense.tokens[:_TRACED])
    return [
        float((new.float() - old.float()).square().sum() / old.float().square().sum())
        for old, new in zip(dense.layers, found, strict=True)
    ]


def fidelity(dense: Reference, model: Any, *, batch: int = 8) -> Fidelity:
    """Compare a loaded model with the dense one.

    Raises:
        UsageError: the two have different vocabularies.
        CheckpointError: the model computes NaN or infinity.
    """
    head = dense.head
    total, agreed = 0.0, 0
    for part, hidden in zip(torch.split(dense.tokens, batch), torch.split(dense.hidden, batch), strict=True):
        logits = model(part.to(input_device(model)), use_cache=False).logits
        head = head.to(logits.device)
        if logits.shape[-1] != len(head):
            raise UsageError(
                f"the models do not share a vocabulary ({len(head)} and {logits.shape[-1]} tokens): "
                "compare a model with the one it was folded from"
            )
        for row in range(len(part)):
            p = F.linear(hidden[row].to(logits.device), head).float().log_softmax(-1)
            q = logits[row].float().log_softmax(-1)
            total += float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).double().sum())
            agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
    count = dense.tokens.numel()
    if total != total:
        raise CheckpointError("the model computes NaN on text of the dense model, so it has no KL to it")
    errors = _layer_errors(dense, model)
    return Fidelity(max(0.0, total / count), agreed / count, count, len(dense.tokens), errors)
