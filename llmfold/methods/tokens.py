"""Token sequences to measure on: sampled from the model itself, or cut from a text that the user names."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)

from llmfold.architectures import EMBEDDING, HEAD, ModelShape
from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError, UsageError
from llmfold.methods.streams import CHUNK, chunks
from llmfold.planning.estimate import CACHE_BYTES
from llmfold.quiet import quiet_transformers
from llmfold.streaming.states import stored_array

TOKENS_FILE = "llmfold_tokens.npy"
TOKENS_PER_UNIT = 4
DEFAULT_SEQUENCES = 128
LOOPING = 0.3
"""Share of repeated 4-grams within a sequence above which self tokens are doubted; text stays far below."""


@dataclass(frozen=True)
class TokenBudget:
    """How many sequences of how many tokens.

    Attributes:
        sequences: how many.
        length: tokens of each.
        lead: where sequences are sampled, each is a window that begins up to this many tokens into a document.
    """

    sequences: int
    length: int
    lead: int = 0

    @property
    def sampled(self) -> int:
        """Tokens to sample for a sequence."""
        return self.length + self.lead


def token_budget(shape: ModelShape, positions: int, sequences: int | None, length: int | None) -> TokenBudget:
    """Default budget: 128 sequences of 256 tokens, more where a block has more than a quarter as many units.

    Windows begin up to their own length into a document, as far as the model has positions for it.

    Args:
        shape: the model's shape.
        positions: the model's maximum number of positions.
        sequences: wanted sequences, or None.
        length: wanted tokens per sequence, or None.

    Raises:
        UsageError: sequences longer than the model allows.
    """
    length = length or min(256, positions)
    if length > positions:
        raise UsageError(f"--sequence-length {length} exceeds the model's maximum of {positions} positions")
    widest = max(max(layer.intermediate, layer.heads * shape.head_dim) for layer in shape.layers)
    needed = -(-TOKENS_PER_UNIT * widest // length)
    sequences = sequences or max(DEFAULT_SEQUENCES, -(-needed // CHUNK) * CHUNK)
    return TokenBudget(sequences, length, min(length, positions - length))


def sample_tokens(
    folder: Path,
    budget: TokenBudget,
    seed: int,
    device: torch.device,
    *,
    temperature: float = 1.0,
    cache_limit: int = CACHE_BYTES,
    **loading: Any,
) -> Tensor:
    """Sample documents from the model, no top-k, starting from BOS; where one ends, the next begins.

    Sequences are windows of them from a random place on: text that a model meets seldom begins where a document does.
    Where the config knows no BOS, documents start from EOS, which separates them in such models.

    Args:
        folder: the checkpoint.
        budget: sequences and tokens, the first token included.
        seed: of the sampling, and of the windows' places.
        device: where the model is held.
        temperature: of the softmax; 1 follows the model.
        cache_limit: bytes that the key/value cache may take: it decides how many sequences are sampled at once.
        loading: passed to ``from_pretrained``, e.g. ``device_map`` and ``max_memory`` for accelerate's offloading.

    Returns:
        (sequences, length) int64 on the CPU.

    Raises:
        CheckpointError: the model samples NaN, or nothing says how a sequence begins.
    """
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **loading).eval()
    if "device_map" not in loading:
        model = model.to(device)
    start, ends = _document_marks(model)
    rules = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=budget.sampled - 1,
        pad_token_id=start,
    )
    # What the rules leave open, generate takes from here: an EOS would end a sequence and pad the rest.
    model.generation_config = rules
    parts: list[Tensor] = []
    batch = _batch(model.config, budget, cache_limit)
    with torch.random.fork_rng(), torch.inference_mode(), quiet_transformers():
        torch.manual_seed(seed)
        for first in range(0, budget.sequences, batch):
            rows = min(batch, budget.sequences - first)
            prompt = torch.full((rows, 1), start, device=input_device(model))
            parts.append(
                model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=rules,
                    logits_processor=LogitsProcessorList([_Finite(), _BeginAnew(ends, start)]),
                ).cpu()
            )
    return windows(torch.cat(parts), budget, seed, ends - {start}).clone()  # an ordinary tensor, which autograd takes


def windows(documents: Tensor, budget: TokenBudget, seed: int, ends: set[int]) -> Tensor:
    """Cut a window out of every sampled document, at a random place, but none that outlasts its document for it.

    A model may never have seen a second document follow: where one ends early, its window begins with it.

    Args:
        documents: (sequences, sampled) int64; what follows an end is the next document.
        budget: gives the windows' length, and how far into a document they begin at most.
        seed: of the places.
        ends: tokens that end a document.

    Returns:
        (sequences, length) int64.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + 1) % 2**63)
    start = torch.randint(0, budget.lead + 1, (len(documents), 1), generator=generator)
    ended = torch.isin(documents, torch.tensor(sorted(ends), dtype=documents.dtype))
    reach = torch.where(ended.any(1), ended.int().argmax(1) + 1, documents.shape[1])[:, None]
    start = start.minimum((reach - budget.length).clamp(min=0))
    return documents.gather(1, start + torch.arange(budget.length))


def cache_bytes(config: Any, length: int) -> int:
    """Key/value cache of one sequence, counted in float32."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * 4 * config.num_hidden_layers * config.num_key_value_heads * head_dim * length)


def _batch(config: Any, budget: TokenBudget, cache_limit: int) -> int:
    """Sequences sampled at once: as many as keep the cache within its limit, the same number on every machine."""
    return max(1, min(budget.sequences, cache_limit // cache_bytes(config, budget.sampled)))


def input_device(model: Any) -> torch.device:
    """Where token ids go: the first parameter that is not on disk tells."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


class _Finite(LogitsProcessor):  # type: ignore[misc]
    """Sampling from NaN is an accident of the model, and says so."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not torch.isfinite(scores).all():
            raise CheckpointError("the model computes NaN or infinite logits on its own tokens: it is damaged")
        return scores


class _BeginAnew(LogitsProcessor):  # type: ignore[misc]
    """After the end of a document the next one begins: the model has never seen anything else follow."""

    def __init__(self, ends: set[int], start: int) -> None:
        self._ends, self._start = sorted(ends - {start}), start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ended = torch.isin(input_ids[:, -1], torch.tensor(self._ends, device=input_ids.device, dtype=input_ids.dtype))
        begin = torch.full_like(scores[0], -torch.inf)
        begin[self._start] = 0.0
        return torch.where(ended[:, None], begin, scores)


def _document_marks(model: Any) -> tuple[int, set[int]]:
    """How a sequence begins, and what ends a document, by the generation config and then the config."""
    settings, config = model.generation_config, model.config
    stop = settings.eos_token_id if settings.eos_token_id is not None else getattr(config, "eos_token_id", None)
    ends = [] if stop is None else stop if isinstance(stop, list) else [stop]
    begins = (settings.bos_token_id, getattr(config, "bos_token_id", None), *ends)
    start = next((token for token in begins if token is not None), None)
    if start is None:
        raise CheckpointError(
            "config.json names neither bos_token_id nor eos_token_id, so self tokens have no beginning"
        )
    return int(start), set(map(int, ends))


def quality(tokens: Tensor) -> dict[str, float]:
    """How text-like sampled tokens are.

    Returns:
        ``distinct``: different tokens over all tokens; ``repeated_4grams``: fraction of 4-grams that stood before in
        the same sequence, which approaches one when a model has fallen into a loop.
    """
    repeated = total = 0
    for row in tokens.tolist():
        grams = [tuple(row[i : i + 4]) for i in range(len(row) - 3)]
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return {"distinct": len(torch.unique(tokens)) / tokens.numel(), "repeated_4grams": repeated / max(total, 1)}


def doubt(found: dict[str, float]) -> str | None:
    """A sentence of warning where sampled tokens look like a loop rather than text."""
    if found["repeated_4grams"] <= LOOPING:
        return None
    return (
        f"{found['repeated_4grams']:.0%} of the sampled 4-grams repeat: the model falls into loops, and what was "
        "measured on its own text may not hold elsewhere; try --method weights, or --method calibrated with your text"
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, from tokenizer.json itself where there is one."""
    with quiet_transformers():
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def text_tokens(folder: Path, text: str, budget: TokenBudget, origin: str) -> Tensor:
    """Cut the head of a text into sequences.

    Raises:
        UsageError: the text is too short.
    """
    with quiet_transformers():
        stream = load_tokenizer(folder)(text).input_ids
    wanted = budget.sequences * budget.length
    if len(stream) < wanted:
        raise UsageError(f"{origin} holds {len(stream)} tokens but {wanted} are wanted; pass a longer text")
    return torch.tensor(stream[:wanted]).view(budget.sequences, budget.length)


def stored(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Tokens from ``path``; made and stored there if they are not yet."""
    return torch.from_numpy(stored_array(path, lambda: make().numpy().astype(np.int32)).astype(np.int64))


def digest(tokens: Tensor) -> str:
    """SHA-256 of the tokens as int32, which names them."""
    return hashlib.sha256(tokens.numpy().astype(np.int32).tobytes()).hexdigest()


def embedded(checkpoint: Checkpoint, tokens: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Hidden states before the first layer, in chunks of ``CHUNK`` sequences."""
    table = checkpoint.read(EMBEDDING if EMBEDDING in checkpoint.tensors else HEAD, check_finite=False)
    for part in chunks(len(tokens)):
        yield F.embedding(tokens[part], table).float().to(device)
