"""A Llama written in Mistral form is read by the tokenizer that transformers chose for the source."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support import edit_json, fold, tiny_model
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer

from llmfold import plan
from llmfold.data import tokenizer
from llmfold.data.texts import read_text
from llmfold.errors import CheckpointError, VerificationError
from llmfold.evaluation.evaluate import evaluate
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.suite import Suite
from llmfold.evaluation.zeroshot import Harness, TaskScore
from llmfold.pipeline import output_tokenizer
from llmfold.pipeline import run as run_module

SCORE = TaskScore("piqa", {"acc": (0.5, None)}, documents=1, shots=0, version="1", data="here")
Run = Callable[..., tuple[int, str, str]]
TO_MISTRAL: dict[str, Any] = {"attention_ratio": 0.25, "mlp_ratio": 0.25}
"""Three heads of four, which no Llama of hidden size 32 has."""
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
TEXTS = (" two  words", "\ttab\n\nline", "</s>after", "<s> x\n</s> y", "ü 🙂", "abc")
NAMED: dict[str, dict[str, Any]] = {
    "LlamaTokenizer": {"tokenizer_class": "LlamaTokenizer"},
    "LlamaTokenizerFast": {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "model_max_length": 64},
    "legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": TEMPLATE},
    "ends": {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True, "padding_side": "right"},
    "no prefix": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "truncation_side": "left"},
    "GPT2Tokenizer": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "pad_token": "</s>"},
    "PreTrainedTokenizerFast": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "no class": {"bos_token": "<s>", "eos_token": "</s>"},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sentencepiece_like(tiny_model(tmp_path / "m", num_key_value_heads=4))


def sentencepiece_like(folder: Path) -> Path:
    """A tokenizer as converters of sentencepiece write it; transformers 5 builds another from its vocabulary."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "\n"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: i for i, letter in enumerate(letters, 3)}}
    vocabulary |= {"▁a": len(vocabulary), "▁▁": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "▁")], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def as_read(folder: Path) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    chat = tokenizer.chat_template and tokenizer.apply_chat_template(
        [{"role": "user", "content": " a"}], tokenize=False
    )
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    return [ids, [tokenizer.decode(row) for row in ids], tokenizer.special_tokens_map, len(tokenizer), *sides, chat]


def as_mistral(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "mistral"
    return config


@pytest.mark.parametrize("case", NAMED)
def test_a_tokenizer_is_kept_where_the_family_changes(source: Path, tmp_path: Path, case: str) -> None:
    (source / "tokenizer_config.json").write_text(json.dumps(NAMED[case]))
    report = fold(source, output=tmp_path / "out", **TO_MISTRAL)
    as_mistral(tmp_path / "out")
    assert as_read(tmp_path / "out") == as_read(source)
    assert report.verification["tokenizer_texts"] >= 24
    same = (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert same is (case in ("PreTrainedTokenizerFast", "no class"))


def test_a_class_that_only_the_config_names_is_kept(source: Path, tmp_path: Path) -> None:
    edit_json(source / "config.json", tokenizer_class="LlamaTokenizer")
    fold(source, output=tmp_path / "out", **TO_MISTRAL)
    as_mistral(tmp_path / "out")
    assert as_read(tmp_path / "out") == as_read(source)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["padding_side"] == "left"


def test_files_are_left_alone_where_the_family_stays(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").write_text(json.dumps(NAMED["legacy"]))
    fold(source, output=tmp_path / "out", mlp_ratio=0.25, attention_ratio=0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def config(**fields: Any) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **fields)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "padding": (config(padding_side="right"), "padding_side: 'right' and not 'left'"),
    "truncation": (config(truncation_side="left"), "truncation_side"),
    "special tokens": (config(pad_token="</s>"), "special tokens"),
    "more tokens": (config(extra_special_tokens=["<more>"]), "number of tokens|special tokens"),
    "length": (config(model_max_length=9), "model_max_length"),
    "class": (config(tokenizer_class="PreTrainedTokenizerFast", padding_side="left"), "how it reads"),
    "reading": (lambda folder: edit_json(folder / "tokenizer.json", post_processor=None), "how it reads"),
    "template": (config(chat_template="{{ messages[0]['content'] }}"), "chat_template: "),
    "no template": (config(chat_template=None), "chat_template: None"),
    "nothing": (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize(("case", "verify"), [*((case, "shapes") for case in TAMPERINGS), ("reading", "full")])
def test_an_output_with_another_tokenizer_is_not_published(
    source: Path, space: Path, monkeypatch: pytest.MonkeyPatch, case: str, verify: str
) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(NAMED["legacy"] | special))
    change, words = TAMPERINGS[case]
    checked = run_module.verify

    def tampered(folder: Path, *args: Any) -> Any:
        change(folder)
        return checked(folder, *args)

    monkeypatch.setattr(run_module, "verify", tampered)
    with pytest.raises(VerificationError, match=words):
        fold(source, output=space / "out", mlp_ratio=0.25, attention_ratio=0, verify=verify)
    assert not (space / "out").exists()


def empty(source: Path) -> None:
    (source / "tokenizer.json").write_text("{}")


def sentencepiece(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"sentencepiece")


UNREADABLE = {empty: "tokenizer.json is no tokenizer", sentencepiece: "needs sentencepiece and protobuf: pip install"}


@pytest.mark.parametrize("spoil", UNREADABLE)
@pytest.mark.parametrize("command", ["fold", "plan"])
def test_a_tokenizer_that_cannot_be_read_is_told_before_the_family_changes(
    llmfold: Run,
    source: Path,
    space: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    spoil: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(tokenizer, "_is_installed", lambda module: False)
    spoil(source)
    arguments = ("--model", source, "--method", "paper", "--output", space / "out", "--fidelity-tokens", 0)
    code, _, err = llmfold(command, *arguments, "--attention-ratio", 0.25)
    assert (code, err.count("\n")) == (1, 1)
    for words in ("MistralForCausalLM", UNREADABLE[spoil], "--attention-ratio 0"):
        assert words in err
    assert list(space.iterdir()) == []
    assert llmfold(command, *arguments, "--attention-ratio", 0.5)[0] == 0


def test_what_only_a_class_does_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code Llama's fills a gap in the middle of a text; others are not of the library ``tokenizers``."""

    class Slow:
        is_fast = False

    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CodeLlamaTokenizer"}))
    options = {"method": "paper", **TO_MISTRAL}
    with pytest.raises(CheckpointError, match=r"CodeLlamaTokenizer of .* would differ in how it reads '<FILL_ME>"):
        plan(str(source), **options)
    fold(source, output=tmp_path / "out", mlp_ratio=0.25, attention_ratio=0)
    monkeypatch.setattr(output_tokenizer, "stock_tokenizer", lambda folder: Slow())
    with pytest.raises(CheckpointError, match=r"Slow of .* has no tokenizer\.json"):
        plan(str(source), **options)


def test_one_tokenizer_reads_every_text_of_a_table(
    reader: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the dense model: an output's may have been changed, or written for another family."""
    other = shutil.copytree(reader, tmp_path / "other")
    (other / "model.safetensors").touch()
    alphabet = json.loads((reader / "tokenizer.json").read_text())["model"]["vocab"]
    shifted = {token: (index + 3) % 32 if index > 2 else index for token, index in alphabet.items()}
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] = shifted
    (other / "tokenizer.json").write_text(json.dumps(content))
    read: list[Path] = []
    harness = SimpleNamespace(names=["piqa"], key=lambda name: [name], run=lambda *args: read.append(args[2]) or SCORE)
    suite = Suite(read_text(str(prose)), cast("Harness", harness))
    options: dict[str, Any] = {"text": str(prose), "sequence_length": 50, "fidelity_tokens": 0}
    found = evaluate(EvaluationSettings(str(other), against=str(reader), **options), suite=suite)
    assert found.model.perplexity == found.dense.perplexity  # type: ignore[union-attr]
    assert read == [reader, reader]
    alone = evaluate(EvaluationSettings(str(other), **options), suite=suite)
    assert alone.model.perplexity != found.model.perplexity
    assert read[2:] == [other]
