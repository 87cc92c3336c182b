"""How sampled documents begin, what begins where one of them ends, and what keeps them as diverse as text is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.data.tokenizer import load_tokenizer
from llmfold.errors import CheckpointError
from llmfold.kinds import is_integer
from llmfold.models.settings import text_config

UNSET = -1
"""Where a prompt leaves the token to the model."""
_WORD_MARKS = "Ġ▁"
"""What stands before the first letter of a word in the vocabularies of byte-level BPE and of sentencepiece."""
BURST_EVERY = 64
"""Tokens of a document from the beginning of one burst of hotter ones to that of the next."""


@dataclass(frozen=True)
class Mixture:
    """Kinds of documents.

    Attributes:
        words: share that begins with the token that separates documents, and a random word; the others begin with the
            model's start token. Chat models write nothing but chat after that one.
        strewn: share of tokens that are random words: models hardly write rare words by themselves, and text is full
            of them.
        burst: how many of every ``BURST_EVERY`` tokens of a document, the first of them, are drawn hotter than the
            others: without them documents have fewer rare words than text has, and repeat themselves more.
        heat: times the temperature of the others, that of these.
    """

    words: float = 0.5
    strewn: float = 0.0
    burst: int = 0
    heat: float = 1.0

    def heats(self, ages: Tensor) -> Tensor:
        """Times the temperature, that of tokens with so many before them in their documents; float32."""
        return torch.where(ages % BURST_EVERY < self.burst, self.heat, 1.0)


PLAIN, MIXTURE = Mixture(), Mixture(strewn=0.03, burst=8, heat=1.45)
"""What a model writes by itself, and what folding measures on."""


@dataclass(frozen=True)
class Beginnings:
    """What a model knows of documents.

    Attributes:
        start: token that a document begins with.
        ends: tokens that end one; the first of them separates documents.
        words: token that a text begins with, by capitalised word of the vocabulary; empty where no tokenizer tells.
        inner: words within a text, that is behind a space; empty where no tokenizer tells.
    """

    start: int
    ends: tuple[int, ...]
    words: tuple[int, ...] = ()
    inner: tuple[int, ...] = ()

    @classmethod
    def of(cls, folder: Path, settings: Any, config: Any) -> "Beginnings":
        """Read the generation config, then the config, then the tokenizer of a checkpoint.

        Ids that are no rows of the embedding, such as the -1 of some exporters, count as not named.

        Raises:
            CheckpointError: nothing says how a document begins.
        """
        text = text_config(config)
        rows, places = int(text.vocab_size), (settings, config, text)
        named = {
            key: next(filter(None, (_rows(getattr(place, key, None), rows) for place in places)), ())
            for key in ("bos_token_id", "eos_token_id")
        }
        ends = named["eos_token_id"]
        start = next(iter((*named["bos_token_id"], *ends)), None)
        if start is None:
            raise CheckpointError(
                f"config.json names neither bos_token_id nor eos_token_id among the {rows} tokens of the model, "
                "so self tokens have no beginning: name one there"
            )
        first, inner = _words(folder, rows)
        return cls(start, ends, first if ends else (), inner)

    def following(self, previous: Tensor, chances: Tensor) -> Tensor:
        """What must follow: where a document has ended, the next begins with a word, or with the start token.

        Args:
            previous: (documents,) int64 last tokens.
            chances: (documents,) uniform in [0, 1), which choose the words.

        Returns:
            (documents,) int64, ``UNSET`` where no document has ended.
        """
        ended = self._ended(previous)
        if self.words:
            return torch.where(ended, torch.tensor(self.words)[(chances * len(self.words)).long()], UNSET)
        return torch.where(ended & (previous != self.start), self.start, UNSET)

    def ages(self, ages: Tensor, previous: Tensor) -> Tensor:
        """How many tokens of its document stand before each that is to come; one where a document has just ended.

        Args:
            ages: (documents,) int64 of the last tokens.
            previous: (documents,) int64 last tokens.
        """
        return torch.where(self._ended(previous), 0, ages) + 1

    def _ended(self, previous: Tensor) -> Tensor:
        return torch.isin(previous, torch.tensor(self.ends, dtype=torch.int64))


def starts(beginnings: Beginnings, mixture: Mixture, documents: range, generator: torch.Generator) -> Tensor:
    """Prompts of documents, whose kinds alternate in the mixture's shares.

    Args:
        beginnings: of the model.
        mixture: of the kinds; without words all documents begin with the start token.
        documents: their numbers among all.
        generator: draws the words.

    Returns:
        (documents, 2) int64; ``UNSET`` where the model chooses.
    """
    prompts = torch.full((len(documents), 2), UNSET, dtype=torch.int64)
    prompts[:, 0] = beginnings.start
    if beginnings.words:
        words = torch.tensor(beginnings.words)
        drawn = words[torch.randint(len(words), (len(documents),), generator=generator)]
        numbers = torch.arange(documents.start, documents.stop, dtype=torch.float64)
        worded = ((numbers + 1) * mixture.words).floor() > (numbers * mixture.words).floor()
        prompts[worded] = torch.stack([torch.full_like(drawn, beginnings.ends[0]), drawn], 1)[worded]
    return prompts


def _rows(named: Any, vocabulary: int) -> tuple[int, ...]:
    """Of the token ids that a config names, one or several, those that are rows of the embedding."""
    ids = named if isinstance(named, list | tuple) else [named]
    return tuple(token for token in ids if is_integer(token) and 0 <= token < vocabulary)


def _words(folder: Path, vocabulary: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Words of the vocabulary: those that begin a text, by the tokenizer's first token, and those behind a space."""
    try:
        tokenizer = load_tokenizer(folder)
        tokens = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), vocabulary))))
    except CheckpointError:
        return (), ()
    marked = {i: t[1:] for i, t in enumerate(tokens) if t and t[0] in _WORD_MARKS}
    words = {i: word for i, word in marked.items() if word.isascii() and word.isalpha()}
    capitalised = [word for word in words.values() if word[0].isupper()]
    first = (ids[0] for ids in tokenizer(capitalised, add_special_tokens=False).input_ids) if capitalised else ()
    return tuple(token for token in first if token < vocabulary), tuple(words)
