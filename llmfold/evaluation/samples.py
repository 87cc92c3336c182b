"""A few prompts continued by the dense model and by the folded one: what people look at first."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.data.tokenizer import load_tokenizer
from llmfold.data.tokens import input_device
from llmfold.errors import CheckpointError
from llmfold.models.settings import POSITIONS, setting, text_config

PROMPTS = (
    "Once upon a time, there was a",
    "The city lies on the river and is known for",
    "The human heart is an organ",
)
NEW_TOKENS = 32


@dataclass(frozen=True)
class Sample:
    """A prompt, and what each model wrote after it."""

    prompt: str
    dense: str
    model: str


def find_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a checkpoint, or None where it has none that can be loaded."""
    try:
        return load_tokenizer(folder)
    except CheckpointError:
        return None


def continue_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str] = PROMPTS, new_tokens: int = NEW_TOKENS
) -> list[str] | None:
    """Continue prompts by the most likely token each time, as plain text.

    Args:
        model: loaded by stock transformers, in inference mode.
        tokenizer: of that model.
        prompts: texts, none empty.
        new_tokens: most tokens to write; fewer where the model has no positions left, or ends its text.

    Returns:
        The texts written, or None where the tokenizer's ids or the prompts are too large for the model.
    """
    ids = [list(tokenizer(prompt).input_ids) for prompt in prompts]
    longest = max(map(len, ids))
    text = text_config(model.config)
    vocabulary, positions = text.vocab_size, setting(text, "max_position_embeddings") or POSITIONS
    if not all(ids) or max(map(max, ids)) >= vocabulary or longest >= positions:
        return None
    written = greedy(model, ids, min(new_tokens, positions - longest))
    return [_text(tokenizer, prompt, row) for prompt, row in zip(ids, written, strict=True)]


def greedy(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The ``count`` most likely next tokens of every prompt, one after the other; fewer where an end token comes.

    Prompts go together, padded on the left: padding is masked, and positions count from a prompt's own beginning.
    Models that carry a state do not mask it there, and some hand no cache on: they take a prompt at a time, as a whole.
    """
    if model._is_stateful:
        return [_alone(model, prompt, count) for prompt in prompts]
    device = input_device(model)
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, written = None, []
    for _ in range(count):
        output = model(
            tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        tokens = output.logits[:, -1].argmax(-1, keepdim=True).to(device)
        written.append(tokens)
        mask, positions = torch.cat((mask, torch.ones_like(tokens)), -1), positions[:, -1:] + 1
    return [_before_end(row, _end_tokens(model)) for row in torch.cat(written, -1).cpu()]


def _alone(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """:func:`greedy` of one prompt, the whole text at every step."""
    tokens = torch.tensor([list(prompt)], device=input_device(model))
    for _ in range(count):
        likeliest = model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1:].argmax(-1)
        tokens = torch.cat((tokens, likeliest.to(tokens.device)), -1)
    return _before_end(tokens[0, len(prompt) :].cpu(), _end_tokens(model))


def _end_tokens(model: Any) -> set[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}


def _before_end(row: Tensor, ends: set[int]) -> list[int]:
    tokens = row.tolist()
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


def _text(tokenizer: Any, prompt: list[int], written: list[int]) -> str:
    """What was written, with the space that stands before it."""
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    before, whole = decode(prompt), decode(prompt + written)
    return str(whole.removeprefix(before) if whole.startswith(before) else decode(written))
