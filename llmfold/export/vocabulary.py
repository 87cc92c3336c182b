"""A tokenizer in the words of GGUF: tokens with their kinds, merges or scores, special tokens, chat template."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from llmfold.data.tokenizer import load_tokenizer, stock_tokenizer
from llmfold.errors import CheckpointError, UsageError
from llmfold.export.pre_tokenizer import pre_tokenizer, probe_text

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MARK = "\u2581"
"""What SentencePiece writes for a space."""
_UNUSED_SCORE = -1000.0
_CONTROL = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused\d+>|<pad>|<mask>", re.DOTALL)
"""Tokens that steer a model, whether or not its files say so."""
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom")
_BYTES, _PIECES = "gpt2", "llama"
"""GGUF's words for merges of bytes, and for pieces of text as SentencePiece has them."""


@dataclass(frozen=True)
class Vocabulary:
    """What is written of a tokenizer.

    Attributes:
        model: ``gpt2`` for merges of bytes, ``llama`` for pieces as SentencePiece has them.
        pre: llama.cpp's name of its pre-tokenizer.
        tokens: by id, as many as the embedding has rows.
        types: of each, a ``gguf.TokenType``.
        scores: of each, the higher the earlier it is merged; for ``llama`` only.
        merges: pairs in their order; for ``gpt2`` only.
        settings: further keys of ``tokenizer.ggml``, such as ``bos_token_id`` and ``add_bos_token``.
        chat_template: as the checkpoint has it, a text or several by name.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    settings: dict[str, int | bool] = field(default_factory=dict)
    chat_template: Any = None


def read_vocabulary(folder: Path, rows: int, pre: str | None) -> Vocabulary:
    """The tokenizer of a checkpoint.

    Args:
        folder: of the checkpoint.
        rows: of its embedding.
        pre: name of its pre-tokenizer, None to find it.

    Raises:
        UsageError: ``pre`` for a tokenizer that has no such thing.
        CheckpointError: no tokenizer, one that llama.cpp has no kind for, or one whose pre-tokenizer it does not know.
    """
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _foreign("is none of the fast ones")
    raw = json.loads(backend.to_str())
    model = _model_of(raw)
    if model == _PIECES and pre is not None:
        raise UsageError("--pre is for merges of bytes, and this tokenizer works with pieces of text: leave it out")
    tokens, types = _tokens(raw, rows, model)
    settings, template = _special(folder, tokenizer, rows)
    if model == _PIECES:
        settings["add_space_prefix"] = _writes_space(tokenizer)
        scores = _scores(raw["model"]["merges"], tokens, types)
        return Vocabulary(model, "default", tokens, types, scores, settings=settings, chat_template=template)
    if pre is None:
        loaded = (tokenizer, stock_tokenizer(folder))
        encodings = [each.encode(probe_text()) for each in loaded if each is not None]
        pre = pre_tokenizer(encodings, raw["pre_tokenizer"])
    merges = [" ".join(pair) for pair in _pairs(raw["model"]["merges"])]
    return Vocabulary(model, pre, tokens, types, merges=merges, settings=settings, chat_template=template)


def _model_of(raw: Mapping[str, Any]) -> str:
    if raw["model"]["type"] != "BPE":
        raise _foreign(f"is of the kind {raw['model']['type']}")
    if raw["model"].get("byte_fallback"):
        return _PIECES
    rules = json.dumps([raw["pre_tokenizer"], raw["decoder"]])
    if '"ByteLevel"' not in rules:
        raise _foreign("merges letters, and neither bytes nor pieces that fall back to bytes")
    return _BYTES


def _foreign(reason: str) -> CheckpointError:
    return CheckpointError(f"the tokenizer {reason}: only byte-level and SentencePiece's BPE can be exported to GGUF")


def _tokens(raw: Mapping[str, Any], rows: int, model: str) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; rows of the embedding without a token are called unused."""
    kinds = gguf.TokenType
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [int(kinds.UNUSED)] * rows
    vocabulary = {int(i): token for token, i in raw["model"]["vocab"].items()}
    added = {int(each["id"]): each for each in raw["added_tokens"]}
    largest = max([*vocabulary, *added])
    if largest >= rows:
        raise CheckpointError(
            f"the tokenizer writes ids up to {largest}, but the embedding has {rows} rows: the two are not of one model"
        )
    for i, token in vocabulary.items():
        is_byte = model == _PIECES and _BYTE.fullmatch(token)
        tokens[i], types[i] = token, int(kinds.BYTE if is_byte else kinds.NORMAL)
    for i, each in added.items():
        steers = each["special"] or _CONTROL.fullmatch(each["content"])
        tokens[i] = each["content"] if steers else each["content"].replace(_MARK, " ")
        types[i] = int(kinds.CONTROL if steers else kinds.USER_DEFINED)
    unknown = raw["model"].get("unk_token")
    if model == _PIECES and unknown in tokens:
        types[tokens.index(unknown)] = int(kinds.UNKNOWN)
    return tokens, types


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """Merges as pairs; a space inside of one is written as byte-level BPE writes it."""
    return [(left.replace(" ", "\u0120"), right.replace(" ", "\u0120")) for left, right in map(_parts, merges)]


def _parts(merge: Any) -> tuple[str, str]:
    """The two parts of a merge, which is stored as a pair or, by older releases, as words."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _scores(merges: list[Any], tokens: list[str], types: list[int]) -> list[float]:
    """SentencePiece merges whatever scores best first: a token's score is the place of the first merge that makes it.

    Single letters are what merging starts from, so theirs do not matter.
    """
    place: dict[str, int] = {}
    for i, merge in enumerate(merges):
        place.setdefault("".join(_parts(merge)), i)
    normal, last = int(gguf.TokenType.NORMAL), len(place)
    return [
        -float(place.get(token, last + i)) if kind == normal else _UNUSED_SCORE
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]


def _writes_space(tokenizer: Any) -> bool:
    """Whether a space is put before a text."""
    first = tokenizer.tokenize("a")[:1]
    return bool(first) and first[0].startswith(_MARK)


def _special(folder: Path, tokenizer: Any, rows: int) -> tuple[dict[str, int | bool], Any]:
    """Special tokens and what is added to every text, and the chat template; the tokenizer itself is asked first."""
    with tempfile.TemporaryDirectory() as own:
        if not (folder / "tokenizer.json").exists():  # one of another form, which is read from its JSON
            tokenizer.save_pretrained(own)
            folder = Path(own)
        read = gguf.SpecialVocab(folder, n_vocab=rows)
    settings: dict[str, int | bool] = {
        f"{kind}_token_id": int(i) for kind, i in read.special_token_ids.items() if kind in _SPECIAL
    }
    ids = tokenizer("a").input_ids
    for kind, end in (("bos", ids[:1]), ("eos", ids[-1:])):
        settings[f"add_{kind}_token"] = end == [settings.get(f"{kind}_token_id")]
    return settings, read.chat_template or tokenizer.chat_template
