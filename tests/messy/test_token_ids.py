"""Token ids that are no rows of the embedding."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import edit_json, fold, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from llmfold import CheckpointError, UsageError, plan
from llmfold.data.beginnings import Beginnings
from llmfold.data.texts import read_text
from llmfold.data.tokens import TokenBudget, text_tokens
from llmfold.evaluation.evaluate import evaluate
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.perplexity import text_windows


def word_tokenizer(folder: Path, largest: int) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 3, "b": largest, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("generation", "config", "start", "ends"),
    [
        ((-1, 2), (1, 2), 1, (2,)),
        ((999, [2, -1, 999]), (1, 5), 1, (2,)),
        (([7, 8], 2), (1, 2), 7, (2,)),
        ((-1, [999]), (-1, 5), 5, (5,)),
        (("1", None), (4, None), 4, ()),
        ((64, None), (63, None), 63, ()),
    ],
)
def test_ids_that_are_no_rows_count_as_not_named(
    tmp_path: Path, generation: tuple[Any, Any], config: tuple[Any, Any], start: int, ends: tuple[int, ...]
) -> None:
    settings, stock = (SimpleNamespace(bos_token_id=b, eos_token_id=e, vocab_size=64) for b, e in (generation, config))
    found = Beginnings.of(tmp_path, settings, stock)
    assert (found.start, found.ends) == (start, ends)


def test_no_row_at_all_is_a_sentence(tmp_path: Path) -> None:
    settings = SimpleNamespace(bos_token_id=-1, eos_token_id=[64], vocab_size=64)
    with pytest.raises(CheckpointError, match="among the 64 tokens of the model"):
        Beginnings.of(tmp_path, settings, settings)


def test_a_fold_samples_where_the_generation_config_begins_nowhere(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    (model / "generation_config.json").write_text(json.dumps({"bos_token_id": -1, "eos_token_id": 999}))
    edit_json(model / "config.json", bos_token_id=1)
    options = {"method": "self", "num_samples": 8, "sequence_length": 8, "refine": 0, "mlp_ratio": 0.25}
    assert fold(model, output=str(tmp_path / "out"), **options).data["sequences"] == 8


@pytest.mark.parametrize("content", ["[1]", '"x"', "3"])
def test_a_generation_config_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    model = tiny_model(tmp_path / "m")
    (model / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json does not hold a JSON object"):
        plan(str(model), mlp_ratio=0.25)


def test_a_tokenizer_of_more_ids_than_rows_is_named_where_it_writes_one(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    word_tokenizer(model, largest=70)
    (tmp_path / "a.txt").write_text("a " * 40)
    (tmp_path / "b.txt").write_text("a b " * 40)
    assert text_windows(model, read_text(str(tmp_path / "a.txt")), length=8).tokens.max() == 3
    assert text_tokens(model, "a " * 16, TokenBudget(2, 8), "a", vocabulary=64).shape == (2, 8)
    wanted = "writes the token id 70, and the embedding has 64 rows"
    with pytest.raises(CheckpointError, match=wanted):
        text_windows(model, read_text(str(tmp_path / "b.txt")), length=8)
    with pytest.raises(CheckpointError, match=wanted):
        fold(
            model,
            method="calibrated",
            data=str(tmp_path / "b.txt"),
            mlp_ratio=0.25,
            num_samples=2,
            sequence_length=8,
            refine=0,
            output=str(tmp_path / "out"),
        )
    assert not (tmp_path / "out").exists()


def test_ids_without_a_row_and_short_texts_are_told_by_a_plan_and_before_a_fold(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    word_tokenizer(model, largest=70)
    texts = {name: tmp_path / f"{name}.txt" for name in ("bad", "good", "short")}
    for name, content in (("bad", "a b " * 80), ("good", "a " * 160), ("short", "a a a")):
        texts[name].write_text(content)
    budget = {"num_samples": 2, "sequence_length": 8, "refine": 0}
    measured: dict[str, Any] = {"method": "paper", "mlp_ratio": 0.25, "eval": "wikitext2"}
    calibrated: dict[str, Any] = {"method": "calibrated", "mlp_ratio": 0.25, **budget}
    row = (CheckpointError, "writes the token id 70, and the embedding has 64 rows")
    for name, (kind, words) in {"bad": row, "short": (UsageError, "holds 3 tokens but")}.items():
        with pytest.raises(kind, match=words):
            plan(str(model), data=str(texts[name]), **calibrated)
        with pytest.raises(kind, match=words):
            fold(model, output=tmp_path / "out", eval_text=str(texts[name]), **measured)
    with pytest.raises(CheckpointError, match=row[1]):
        plan(str(model), eval_text=str(texts["bad"]), **measured)
    assert not list(tmp_path.glob("*out*"))
    plan(str(model), data=str(texts["good"]), **calibrated)
    fold(model, output=tmp_path / "out", eval_text=str(texts["good"]), **measured)


def test_a_folder_without_a_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer"):
        text_tokens(tiny_model(tmp_path / "m"), "a", TokenBudget(1, 1), "a", vocabulary=64)


@pytest.mark.parametrize("rows", [32, 96])
def test_models_of_two_vocabularies_are_not_compared(tmp_path: Path, rows: int) -> None:
    model, dense = tiny_model(tmp_path / "m"), tiny_model(tmp_path / "d", vocab_size=rows)
    with pytest.raises(UsageError, match=rf"do not share a vocabulary \({rows} and 64 tokens\)"):
        evaluate(EvaluationSettings(str(model), against=str(dense), fidelity_tokens=64))
