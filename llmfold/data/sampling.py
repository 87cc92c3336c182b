"""Text that a model writes by itself: documents sampled token by token, of which every token is measured on.

A batch of documents depends on the model, the budget, the seed and its own number alone: batches can be sampled in any
order and by any process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llmfold.checkpoint.blocks import is_finite
from llmfold.data.beginnings import PLAIN, UNSET, Beginnings, Mixture, starts
from llmfold.data.tokens import TokenBudget, input_device
from llmfold.errors import CheckpointError
from llmfold.models.casting import not_finite
from llmfold.models.settings import setting, text_config
from llmfold.runtime.hidden_states import mapped_tensor
from llmfold.runtime.limits import CACHE_BYTES
from llmfold.runtime.seeding import seeded


@dataclass(frozen=True)
class Sampling:
    """What is sampled.

    Attributes:
        budget: sequences and tokens.
        seed: of everything random.
        temperature: of the softmax outside of bursts; 1 follows the model.
        cache_limit: bytes that the key/value cache may take, in float32: it bounds how many documents are sampled at
            once, whatever the machine has.
        mixture: how documents begin, what is strewn in them, and where they are hotter.
    """

    budget: TokenBudget
    seed: int
    temperature: float = 1.0
    cache_limit: int = CACHE_BYTES
    mixture: Mixture = PLAIN

    def batches(self, config: Any) -> list[range]:
        """Numbers of the documents by batch, in batches of about one size, the same on every machine.

        Args:
            config: the model's.
        """
        documents = self.budget.documents
        count = self.budget.batches(cache_bytes(config, self.budget.document_length), self.cache_limit)
        return [range(documents * i // count, documents * (i + 1) // count) for i in range(count)]

    def generator(self, index: int) -> torch.Generator:
        """Random numbers of one batch."""
        return seeded(self.seed, index)


def cache_bytes(config: Any, length: int) -> int:
    """Key/value cache of one document, counted in float32."""
    text = text_config(config)
    heads = setting(text, "num_attention_heads") or 1
    head_dim = setting(text, "head_dim") or text.hidden_size // heads
    shared = setting(text, "num_key_value_heads") or heads
    return int(2 * 4 * text.num_hidden_layers * shared * head_dim * length)


class Sampler:
    """A model that is held while it samples."""

    def __init__(self, folder: Path, model: Any, caches: Path | None = None) -> None:
        """Take a model.

        Args:
            folder: that it was loaded from.
            model: on its device.
            caches: folder where keys and values are held in files, or None to hold them in memory.

        Raises:
            CheckpointError: nothing says how a document begins.
        """
        self._model, self._caches = model, caches
        self._beginnings = Beginnings.of(folder, model.generation_config, model.config)

    def sequences(self, sampling: Sampling) -> Tensor:
        """Sample all batches; (sequences, length) int64 on the CPU. Errors as of :meth:`sample`."""
        batches = enumerate(sampling.batches(self._model.config))
        return sampling.budget.cut(torch.cat([self.sample(sampling, i, batch) for i, batch in batches]))

    @torch.inference_mode()
    def sample(
        self, sampling: Sampling, index: int, documents: range, drawn: Callable[[int], None] = lambda tokens: None
    ) -> Tensor:
        """Sample a batch of documents; where one ends early, the next begins.

        Args:
            sampling: what to sample.
            index: of the batch.
            documents: those of the batch, by number.
            drawn: told of every position how many tokens have been drawn for it.

        Returns:
            (documents, document length) int64 on the CPU.

        Raises:
            CheckpointError: the model computes NaN or infinity.
        """
        generator, length = sampling.generator(index), sampling.budget.document_length
        prompts = starts(self._beginnings, sampling.mixture, documents, generator)
        chances = torch.rand(len(documents), length, generator=generator)
        words = torch.tensor(self._beginnings.inner)
        share = sampling.mixture.strewn if len(words) else 0.0
        cache, device = self._cache(length), input_device(self._model)
        tokens = prompts[:, :1].repeat(1, length)
        if self._model._is_stateful:  # some keep what earlier documents left in their own layers, till a pass without
            self._model(tokens[:, :1].to(device), use_cache=False)
        ages = torch.zeros(len(documents), dtype=torch.int64)
        for place in range(1, length):
            last = tokens[:, place - 1]
            output = self._model(last[:, None].to(device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = getattr(output, "past_key_values", cache)  # some keep theirs in their own layers
            left = (chances[:, place] - share).clamp_min(0) / (1 - share)
            logits = output.logits[:, -1]
            if not is_finite(logits):
                raise CheckpointError(f"the model {not_finite(self._model, tokens[:, :place].to(device))}")
            ages = self._beginnings.ages(ages, last)
            free = draw(logits, left, sampling.temperature * sampling.mixture.heats(ages))
            if share:
                free = strewn(free, chances[:, place], share, words)
            fixed = prompts[:, 1] if place == 1 else self._beginnings.following(last, chances[:, place])
            tokens[:, place] = torch.where(fixed == UNSET, free, fixed)
            drawn(len(documents))
        return tokens

    def _cache(self, length: int) -> DynamicCache | None:
        """A cache for documents; None where the model makes one of its own kind."""
        if not self._model._supports_default_dynamic_cache():
            return None
        return _cache(self._model.config, length, self._caches)


def strewn(tokens: Tensor, chances: Tensor, share: float, words: Tensor) -> Tensor:
    """Replace a share of tokens (rows,), those of the least chances (rows,) in [0, 1), by random words."""
    chosen = (chances / share * len(words)).long().clamp_max(len(words) - 1)
    return torch.where(chances < share, words[chosen], tokens)


def draw(logits: Tensor, chances: Tensor, temperatures: Tensor) -> Tensor:
    """Draw a token a row from the softmax, by inverting its cumulative distribution.

    Args:
        logits: (rows, vocabulary), finite, of any float dtype, on any device.
        chances: (rows,) float32 uniform in [0, 1), on the CPU.
        temperatures: (rows,) float32 of the softmax, on the CPU.

    Returns:
        (rows,) int64 on the CPU.
    """
    cumulative = (logits.float() / temperatures.to(logits.device)[:, None]).softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    below = (chances.to(total.device)[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below, right=True)[:, 0].cpu()


class _Preallocated(DynamicLayer):  # type: ignore[misc]
    """Keys and values in room for a whole document: none is copied when a token comes, and only seen ones are read."""

    is_initialized: bool

    def __init__(self, length: int, file: Path | None) -> None:
        super().__init__()
        self._length, self._file = length, file

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        first = self.get_seq_length()
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._rooms = [
                self._room(states, name) for name, states in (("keys", key_states), ("values", value_states))
            ]
        last = first + key_states.shape[2]
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, first:last] = new
        self.keys, self.values = (room[:, :, :last] for room in self._rooms)
        return self.keys, self.values

    def _room(self, like: Tensor, name: str) -> Tensor:
        shape = (*like.shape[:2], self._length, like.shape[3])
        if self._file is None:
            return like.new_empty(shape)
        return mapped_tensor(self._file.with_name(f"{self._file.name}-{name}"), shape, like.dtype)


def _cache(config: Any, length: int, folder: Path | None) -> DynamicCache:
    """A cache for documents; layers whose sliding window is shorter than those keep the cache of transformers."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        known = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        if known and (getattr(layer, "sliding_window", None) or length) >= length:
            cache.layers[index] = _Preallocated(length, folder and folder / f"layer-{index:05d}")
    return cache
