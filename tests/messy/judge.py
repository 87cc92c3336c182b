"""What must hold of a messy checkpoint: folded as stock transformers computes it, or refused in one sentence."""

import contextlib
import functools
import io
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmfold
from llmfold import cli
from llmfold.runtime.quiet import quiet_transformers
from messy.generator import Composition

REASONS = Path(__file__).with_name("reasons.yaml")
_TOKENS = torch.arange(24).view(2, 12) % 60 + 3
_TEXTS = ("", "a word", " leads\n\tand ends ", "<s>x</s> y", "Ünï 🙂", "<|im_start|>a<|new|>")
_OF_FILES = ("_from_model_config", "transformers_version", "_name_or_path")
_REMEDIES = (
    *("add", "carry", "convert", "copy", "correct", "download", "fold the one", "git lfs pull", "have transformers"),
    *("merge", "remove", "rename", "replace", "save the model", "set", "supported are", "take", "write"),
    *("llmfold folds decoders", "nothing to fold", "cannot fold them"),
)
"""What a refusal says to do, or why nothing helps."""
FINE, REFUSED, NOT_LOADED = "folded", "refused", "refused by both"


@dataclass(frozen=True)
class Case:
    """What became of one composition.

    Attributes:
        outcome: one of ``FINE``, ``REFUSED`` and ``NOT_LOADED``, or ``"fault"``.
        reason: of a refusal of what stock loads, by the committed list.
        sentence: what llmfold said, or what is wrong.
        stock: class of the error that stock transformers raises, empty where it computes finite logits.
    """

    outcome: str
    reason: str
    sentence: str
    stock: str

    def to_json(self) -> dict[str, str]:
        """As a file of cases keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Stock:
    """What stock transformers makes of a folder: an error, or logits, generation config and tokenizer."""

    error: str
    logits: Tensor | None = None
    generation: dict[str, Any] | None = None

    @property
    def computes(self) -> bool:
        """Whether it loads and its logits are finite."""
        return self.logits is not None and bool(self.logits.isfinite().all())


@functools.cache
def reasons() -> list[dict[str, str]]:
    """The committed list."""
    return list(yaml.safe_load(REASONS.read_text(encoding="utf-8")))


def reason_of(sentence: str) -> str:
    """The name of the first reason on the list that a sentence gives, empty where none."""
    return next((each["reason"] for each in reasons() if re.search(each["sentence"], sentence)), "")


def stock_of(folder: Path) -> Stock:
    """Load a folder by stock transformers as a person would, and run a few tokens."""
    try:
        with _quiet(), torch.inference_mode():
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            logits = model(_TOKENS, return_dict=True).logits
            generation = {k: v for k, v in model.generation_config.to_dict().items() if k not in _OF_FILES}
    except Exception as error:  # any kind: it does not load
        return Stock(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Stock("", logits, generation)


def tokenizer_of(folder: Path) -> object:
    """What the stock tokenizer of a folder makes of a few texts, and its settings; the class of its error."""
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            ids = [tokenizer(text).input_ids for text in _TEXTS]
            texts = [tokenizer.decode(each) for each in ids]
        sides = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length)
        return ids, texts, sides, tokenizer.special_tokens_map, tokenizer.chat_template
    except Exception as error:  # any kind: it has none
        return type(error).__name__


def judge(composition: Composition, space: Path, *, whole: bool) -> Case:
    """Make a messy checkpoint in a folder of its own under ``space``, and compare what stock and llmfold make of it.

    Args:
        composition: what to make.
        space: an existing folder, empty before and after.
        whole: fold it by the command line; else it is only opened and planned.
    """
    source, output = space / "model", space / "outputs" / "out"
    output.parent.mkdir()
    stock = Stock("not tried")
    try:
        composition.write(source)
        stock = stock_of(source)
        sentence = _planned(source)
        if whole:
            sentence = _folded(source, output, sentence)
        left = [path.name for path in output.parent.iterdir() if path != output or sentence]
        if left:
            return Case("fault", "", f"left behind: {left[0]} ({sentence})", stock.error)
        return _verdict(stock, sentence, source, output if whole else None)
    except AssertionError as fault:
        return Case("fault", "", str(fault), stock.error)
    finally:
        for path in space.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _verdict(stock: Stock, sentence: str, source: Path, output: Path | None) -> Case:
    if not stock.computes:
        unfit = stock.error or "logits are not finite"
        if not sentence and stock.error:
            return Case("fault", "", "accepted, and stock does not load it", unfit)
        return Case(NOT_LOADED, "", sentence, unfit)
    if sentence:
        reason = reason_of(sentence)
        return Case(REFUSED if reason else "fault", reason, sentence, "")
    if output is not None:
        written = stock_of(output)
        assert written.logits is not None, f"stock does not load the output: {written.error}"
        assert stock.logits is not None
        assert written.logits.dtype == stock.logits.dtype, f"computes in {written.logits.dtype}"
        assert torch.equal(written.logits, stock.logits), (
            f"logits differ by {(written.logits - stock.logits).abs().max()}"
        )
        assert written.generation == stock.generation, f"generation config: {_differing(written, stock)}"
        assert tokenizer_of(output) == tokenizer_of(source), "tokenizer differs"
    return Case(FINE, "", "", "")


def _differing(one: Stock, other: Stock) -> str:
    a, b = one.generation or {}, other.generation or {}
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return ", ".join(f"{key}: {a.get(key)!r}, not {b.get(key)!r}" for key in keys)


def _planned(source: Path) -> str:
    """The sentence of a refusal by ``plan``, empty where there is none."""
    try:
        with _quiet():
            llmfold.plan(str(source), ratio=0, method="paper")
    except llmfold.LlmfoldError as refusal:
        sentence = str(refusal)
    except Exception as error:
        raise AssertionError(f"plan: {type(error).__name__}: {error}") from error
    else:
        return ""
    assert refusal_is_one_sentence(sentence), f"not one sentence: {sentence}"
    assert says_what_to_do(sentence), f"no remedy: {sentence}"
    return sentence


def refusal_is_one_sentence(sentence: str) -> bool:
    """Whether it says something, and not that a fault of the program was met."""
    return bool(sentence.strip()) and not re.match(r"unexpected \w+: ", sentence) and "Traceback" not in sentence


def says_what_to_do(sentence: str) -> bool:
    """Whether a refusal names a remedy, or that there is none: the model is of a kind that llmfold does not fold."""
    return re.search(rf"\b({'|'.join(_REMEDIES)})\b", sentence) is not None


def _folded(source: Path, output: Path, planned: str) -> str:
    """Fold by the command line; the sentence of a refusal, which must be that of the plan, empty where none."""
    words = ["--model", str(source), "--output", str(output), "--ratio", "0", "--method", "paper"]
    words += ["--fidelity-tokens", "0"]
    out, err = io.StringIO(), io.StringIO()
    with _quiet(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    lines = [line.removeprefix("llmfold: ") for line in err.getvalue().splitlines()]
    if code == 0:
        assert not planned, f"plan refuses what is folded: {planned}"
        return ""
    assert code in (1, 2), f"exit code {code}: {lines}"
    assert len(lines) == 1, f"{len(lines)} lines: {lines}"
    assert refusal_is_one_sentence(lines[0]), lines[0]
    same = " ".join(planned.split()) == lines[0]
    late = reason_of(lines[0]) == "damaged numbers" and not planned
    assert same or late, f"refused after the plan: {lines[0]} (plan: {planned})"
    return lines[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        yield
