"""The output's tokenizer: stock transformers must read text by it as by the source's, whatever family it is written as.

``AutoTokenizer`` chooses a class by the model type and the class that is named, and some classes build a tokenizer of
their own from the vocabulary in tokenizer.json. Where the output's family differs from the source's, so may the class.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmfold.checkpoint.side_files import TOKENIZER_CONFIG, copy_side_files
from llmfold.data.tokenizer import has_tokenizer, load_tokenizer, stock_tokenizer
from llmfold.errors import CheckpointError, VerificationError
from llmfold.jsonfile import read_object
from llmfold.planning import FoldPlan

_AS_STORED = "PreTrainedTokenizerFast"
"""The class that takes tokenizer.json as it is, by the name that transformers 4 and 5 know."""
_OF_CLASS = ("padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces")
"""Settings that classes have defaults of, as tokenizer_config.json names them."""
_TEXTS = (
    *("", " ", "word", "two words", " leads", "   three", "ends ", "a  b   c", "Don't we've", "3.14159 1,000,000"),
    *("\n", "\n\nline\n", "\ttab\t\ttabs", "\r\nreturn", "if x:\n    y = [0]\n", "<not_special> [INST] <<SYS>>"),
    *("Ünïcödé naïve", "漢字かな交じり", "العربية", "🙂👩‍👩‍👧", "\u200b\u00a0\ufeff", "\x00\x07", "e\u0301", "𝔘𓀀"),
)
_SPECIALS = 16
"""Special tokens that texts are put behind, at most: some tokenizers have hundreds that are alike."""
_MESSAGES = [
    {"role": "user", "content": " Hello,\n\tworld 🙂 "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Again?"},
]


def check_tokenizer_can_be_kept(folder: Path, plan: FoldPlan) -> None:
    """Refuse a tokenizer that could not be written for the output, where that may get another class of tokenizers.

    Args:
        folder: of the source.
        plan: the fold.

    Raises:
        CheckpointError: it cannot be read here, or its class does what no tokenizer.json can say.
    """
    if not has_tokenizer(folder) or not _may_change_class(folder, plan):
        return
    why, instead = (
        f"{folder / TOKENIZER_CONFIG} names code of its own, which is left out",
        "carry the code by --trust-remote-code",
    )
    if _changes_family(plan):
        why = (
            f"no {plan.before.architecture.causal_lm} has the head counts of this fold, so it is written as "
            f"{plan.written_as.causal_lm} and its tokenizer for that"
        )
        instead = "keep all heads by --attention-ratio 0"
    try:
        tokenizer = stock_tokenizer(folder)
        if (tokenizer is None or not tokenizer.is_fast) and not _changes_family(plan):
            return
        if tokenizer is None:
            load_tokenizer(folder)  # says why
            return
        found = _difference_when_kept(folder, plan) if tokenizer.is_fast else "its kind, which has no tokenizer.json"
    except CheckpointError as error:
        raise CheckpointError(f"{why}, but {error}; or {instead}") from error
    if found is not None:
        raise CheckpointError(
            f"{why}, but as such {type(tokenizer).__name__} of {folder} would differ in {found}: {instead}, "
            "or put a tokenizer.json of another class there"
        )


def _difference_when_kept(folder: Path, plan: FoldPlan) -> str | None:
    """What of the tokenizer of ``folder`` would be lost."""
    with tempfile.TemporaryDirectory(prefix="llmfold-tokenizer-") as scratch:
        copy_side_files(folder, Path(scratch))
        (Path(scratch) / "config.json").write_text(json.dumps({"model_type": plan.written_as.model_type}))
        keep_tokenizer(folder, Path(scratch), plan)
        return difference(stock_tokenizer(folder), stock_tokenizer(Path(scratch)))


def keep_tokenizer(source: Path, target: Path, plan: FoldPlan) -> None:
    """Write the tokenizer of ``target`` anew where stock transformers would read text otherwise than by the source's.

    Args:
        source: folder of the model that was read.
        target: the work folder, with copies of the source's tokenizer files and its own config.json.
        plan: the fold.

    Raises:
        OSError: a file cannot be written.
    """
    if not _may_change_class(source, plan):
        return
    # Two of it, since reading text changes what a tokenizer would save of padding and truncation.
    tokenizer, fresh = stock_tokenizer(source), stock_tokenizer(source)
    if (
        tokenizer is None
        or fresh is None
        or not fresh.is_fast
        or difference(tokenizer, stock_tokenizer(target)) is None
    ):
        return
    (target / "tokenizer.json").write_text(fresh.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    path = target / TOKENIZER_CONFIG
    settings = read_object(path, unique_keys=False) if path.exists() else {}
    settings.pop("added_tokens_decoder", None)  # tokenizer.json has them as the class made them
    settings.update({name: getattr(fresh, name) for name in _OF_CLASS}, tokenizer_class=_AS_STORED)
    settings = {**fresh.special_tokens_map, **settings}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_tokenizer(source: Path, folder: Path) -> int | None:
    """Compare the tokenizers that stock transformers chooses for the source and the output.

    Args:
        source: folder of the model that was read.
        folder: the finished work folder.

    Returns:
        How many texts both read alike; None where the source has no tokenizer that can be read here.

    Raises:
        VerificationError: they differ.
    """
    tokenizer = stock_tokenizer(source)
    if tokenizer is None:
        return None
    found = difference(tokenizer, stock_tokenizer(folder))
    if found is not None:
        raise VerificationError(
            f"the tokenizer that transformers chooses for the output differs from the source's in {found}; "
            f"{folder} was not published"
        )
    return len(list(_texts(tokenizer)))


def difference(source: Any, written: Any | None) -> str | None:
    """What two tokenizers differ in, by settings and by hard texts; None where in nothing. ``None`` is no tokenizer."""
    from llmfold.runtime.quiet import quiet_transformers  # transformers takes seconds, which most plans do without

    if written is None:
        return "that it cannot be read"
    for name, theirs in _settings(source).items():
        ours = _settings(written)[name]
        if ours != theirs:
            return f"{name}: {ours!r:.80} and not {theirs!r:.80}"
    with quiet_transformers():
        for text in _texts(source):
            if _read(source, text) != _read(written, text):
                return f"how it reads {text!r}"
    return None


def _may_change_class(folder: Path, plan: FoldPlan) -> bool:
    """Whether the output may get another class: its family is another, or it has no ``auto_map``, which decides too."""
    path = folder / TOKENIZER_CONFIG
    if _changes_family(plan) or plan.config.trust_remote_code or not path.is_file():
        return _changes_family(plan)
    try:
        return "auto_map" in read_object(path, unique_keys=False)
    except CheckpointError:  # nothing reads it
        return False


def _changes_family(plan: FoldPlan) -> bool:
    return plan.written_as.model_type != plan.before.architecture.model_type


def _settings(tokenizer: Any) -> dict[str, Any]:
    """What is set of a tokenizer, by words for it."""
    return {
        **{name: getattr(tokenizer, name, None) for name in (*_OF_CLASS, "model_max_length")},
        "chat_template": tokenizer.chat_template,
        "special tokens": tokenizer.special_tokens_map,
        "ids of special tokens": tokenizer.all_special_ids,
        "number of tokens": len(tokenizer),
    }


def _texts(tokenizer: Any) -> Iterator[str]:
    """Hard texts, a conversation if there is a template for one, and texts beside special tokens."""
    yield from _TEXTS
    if tokenizer.chat_template:
        with suppress(Exception):  # templates refuse conversations in ways of their own
            yield tokenizer.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=True)
    for token in tokenizer.all_special_tokens[:_SPECIALS]:
        yield from (f"{token}word", f"{token} word\n{token}", f"word{token}\n word")


def _read(tokenizer: Any, text: str) -> object:
    """Ids of a text with and without special tokens, and the text of the latter."""
    try:
        plain = tokenizer(text, add_special_tokens=False).input_ids
        return tokenizer(text).input_ids, plain, tokenizer.decode(plain)
    except Exception as error:  # one that refuses a text must say what the other says
        return f"{type(error).__name__}: {error}"
