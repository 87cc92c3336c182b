"""Token sequences to measure on: sampled from the model itself, or cut from a text that the user names."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmfold.config import FoldConfig
from llmfold.data.tokenizer import load_tokenizer
from llmfold.effort import EFFORTS
from llmfold.errors import CheckpointError, UsageError
from llmfold.models import ModelShape
from llmfold.runtime.hidden_states import CHUNK, stored_array

TOKENS_FILE = "llmfold_tokens.npy"
_WINDOWS, _DOCUMENT = 2, 512
"""Most sequences to a document, and tokens of one that has several: more make fewer documents, which differ less."""
BATCH = 64
"""Documents sampled at once, at most: a step reads all weights, however few they are; processes share whole batches."""
LOOPING = 0.3
"""Share of repeated 4-grams within a sequence above which self tokens are doubted; text stays far below."""


@dataclass(frozen=True)
class TokenBudget:
    """How many sequences of how many tokens.

    Attributes:
        sequences: how many.
        length: tokens of each.
        windows: where sequences are sampled, so many that follow one another are cut from one document.
    """

    sequences: int
    length: int
    windows: int = 1

    @property
    def documents(self) -> int:
        """Documents to sample."""
        return -(-self.sequences // self.windows)

    @property
    def document_length(self) -> int:
        """Tokens of a document."""
        return self.windows * self.length

    @classmethod
    def sampled(cls, sequences: int, length: int, positions: int, documents: int = 1) -> "TokenBudget":
        """Sequences cut from so many documents or more, which a model with so many positions samples."""
        windows = min(_WINDOWS, _DOCUMENT // length, positions // length, sequences // documents)
        return cls(sequences, length, max(1, windows))

    def batches(self, each: int, limit: int) -> int:
        """In how many batches documents are sampled whose caches take ``each`` bytes, and ``limit`` bytes together."""
        return -(-self.documents // max(1, min(BATCH, limit // max(each, 1))))

    def cut(self, documents: Tensor) -> Tensor:
        """Cut (documents, document length) into (sequences, length), those of one document side by side."""
        return documents.reshape(-1, self.length)[: self.sequences].clone()  # no longer of inference mode


def token_budget(config: FoldConfig, shape: ModelShape) -> TokenBudget:
    """Sequences that a fold measures on: those of its effort, unless it names their number or length itself.

    Args:
        config: the fold's options.
        shape: the model's shape.

    Raises:
        UsageError: sequences longer than the model allows, or of a single token.
    """
    effort = EFFORTS[config.effort]
    length = config.sequence_length or effort.length_for(shape)
    if length > shape.positions:
        raise UsageError(f"--sequence-length {length} exceeds the model's maximum of {shape.positions} positions")
    if length < 2:
        raise UsageError(
            f"max_position_embeddings in config.json is {shape.positions}, and --method {config.method} measures on "
            "sequences of 2 tokens or more: correct it, or pass --method weights"
        )
    sequences = config.num_samples or -(-effort.tokens_for(shape) // (length * CHUNK)) * CHUNK
    return TokenBudget.sampled(sequences, length, shape.positions, documents=BATCH)


def resolve_effort(config: FoldConfig, shape: ModelShape) -> FoldConfig:
    """The same options with the numbers that its effort stands for; raises UsageError as :func:`token_budget`."""
    values: dict[str, Any] = {}
    if config.uses("num_samples"):
        budget = token_budget(config, shape)
        values.update(num_samples=budget.sequences, sequence_length=budget.length)
    if config.uses("refine"):
        values.update(refine=refine_steps(config))
    return dataclasses.replace(config, **values)


def refine_steps(config: FoldConfig) -> int:
    """Gradient steps of the refinement: those of the effort, unless the options name them."""
    return EFFORTS[config.effort].refine if config.refine is None else config.refine


def input_device(model: Any) -> torch.device:
    """Where token ids go: the first parameter that is not on disk tells."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def token_statistics(tokens: Tensor) -> dict[str, float]:
    """Statistics of (sequences, length) token ids that tell text from a loop.

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


def loop_warning(statistics: dict[str, float]) -> str | None:
    """A warning where the statistics of :func:`token_statistics` look like a loop rather than text, else None."""
    if statistics["repeated_4grams"] <= LOOPING:
        return None
    return (
        f"{statistics['repeated_4grams']:.0%} of the sampled 4-grams repeat: the model falls into loops, and what was "
        "measured on its own text may not hold elsewhere; try --method weights, or --method calibrated with your text"
    )


def token_ids(folder: Path, text: str, vocabulary: int | None = None) -> Tensor:
    """(tokens,) int64: a text under the tokenizer of ``folder``, special tokens as the tokenizer adds them.

    Args:
        folder: that has the tokenizer.
        text: all of it.
        vocabulary: rows of the embedding that is to look the tokens up; None where none is.

    Raises:
        CheckpointError: the tokenizer cannot be loaded, or writes an id that is no row of the embedding.
    """
    from llmfold.runtime.quiet import quiet_transformers

    tokenizer = load_tokenizer(folder)
    try:
        with quiet_transformers():
            ids = torch.tensor(tokenizer(text).input_ids, dtype=torch.int64)
    except Exception as error:  # of settings that are not what they are called
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the tokenizer in {folder} cannot read text ({reason}): download it again") from error
    if vocabulary is not None:
        check_ids(folder, ids, vocabulary)
    return ids


def check_ids(folder: Path, ids: Tensor | Sequence[int], vocabulary: int) -> None:
    """Raise CheckpointError where the tokenizer of ``folder`` has written an id that is no row of the embedding."""
    ids = torch.as_tensor(ids)
    largest = int(ids.max()) if len(ids) else 0
    if largest >= vocabulary:
        raise CheckpointError(
            f"the tokenizer in {folder} writes the token id {largest}, and the embedding has {vocabulary} rows: it is "
            "another model's, or tokens were added to it alone; put the model's own tokenizer there"
        )


def text_tokens(folder: Path, text: str, budget: TokenBudget, origin: str, vocabulary: int | None = None) -> Tensor:
    """Cut the head of a text into sequences.

    Raises:
        UsageError: the text is too short.
        CheckpointError: as of :func:`token_ids`.
    """
    stream = token_ids(folder, text, vocabulary)
    wanted = budget.sequences * budget.length
    if len(stream) < wanted:
        raise UsageError(f"{origin} holds {len(stream)} tokens but {wanted} are wanted; pass a longer text")
    return stream[:wanted].view(budget.sequences, budget.length)


def stored_tokens(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Tokens from ``path``; made and stored there if they are not yet."""
    stored_array(path, lambda: make().numpy().astype(np.int32))
    return load_tokens(path)


def share_tokens(finished: Path, work: Path) -> None:
    """Bring the tokens of one work folder into another that has none yet."""
    stored_tokens(work / TOKENS_FILE, lambda: load_tokens(finished / TOKENS_FILE))


def load_tokens(path: Path) -> Tensor:
    """Stored tokens, int64."""
    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))


def tokens_sha256(tokens: Tensor) -> str:
    """SHA-256 of the tokens as int32, which names them."""
    return hashlib.sha256(tokens.numpy().astype(np.int32).tobytes()).hexdigest()
