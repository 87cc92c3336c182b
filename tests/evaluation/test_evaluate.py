import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fold, tiny_model

from llmfold import CheckpointError, UsageError
from llmfold.errors import DeviceError
from llmfold.evaluation.dense_comparison import DenseComparison, Scores
from llmfold.evaluation.evaluate import evaluate
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.scores import Evaluation
from llmfold.report.markdown import table
from llmfold.report.scoreboard import document, quality_rows, speed_rows

Cli = Callable[..., tuple[int, str, str]]


def test_prints_and_writes_with_the_dense_model_first(llmfold: Cli, reader: Path, prose: Path, space: Path) -> None:
    out = space / "found.json"
    common = ("eval", "--model", reader, "--text", prose, "--sequence-length", 50)
    code, stdout, stderr = llmfold(*common, "--against", reader, "--fidelity-tokens", 128, "--output", out)
    assert code == 0
    assert stderr.splitlines()[-1] == "measuring tiny"
    assert "dense (tiny)" in stdout.splitlines()[0]
    found = json.loads(out.read_text())
    assert found["model"]["perplexity"] == found["dense"]["perplexity"]
    assert found["fidelity"]["top1"] == 1
    page = out.with_suffix(".md").read_text()
    assert "| KL to dense, nats per token | 0 | 0.0000 |" in page
    assert str(space) not in page
    code, stdout, _ = llmfold(*common)
    assert code == 0
    assert "KL" not in stdout
    assert llmfold(*common, "--quiet") == (0, "", "")


@pytest.mark.usefixtures("forked_workers")
def test_what_was_saved_reads_back(reader: Path, prose: Path, space: Path) -> None:
    folded = fold(reader, mlp_ratio=0.5, output=space / "folded").output
    options: dict[str, Any] = {"text": str(prose), "sequence_length": 50, "fidelity_tokens": 128}
    times = {"tasks": "speed", "prompt_tokens": 8, "new_tokens": 2, "rounds": 1}
    found = evaluate(EvaluationSettings(str(folded), against=str(reader), **options, **times))
    again = Evaluation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert document(again) == document(found)
    elsewhere = Evaluation.from_dict({**found.to_dict(), "versions": {"torch": "1.0"}, "machine": "another machine"})
    assert document(elsewhere).endswith("torch 1.0; another machine.\n")
    assert [row[0] for row in quality_rows(found)] == [
        *("", "perplexity", "KL to dense, nats per token", "top-1 agreement with dense")
    ]
    many = ("prefill, 8 sequences at once", "decode, 8 sequences at once")
    timed = ("prefill, tokens per second", "decode, tokens per second", *many, "seconds to load", "peak memory")
    assert [row[0] for row in speed_rows(found)][1:] == [*(f"{t}, float32 as stored" for t in timed), "weights on disk"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_speed_is_that_of_the_stored_dtype_and_of_the_one_computed_in(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "half", dtype=torch.bfloat16)
    times: dict[str, Any] = {
        "tasks": "speed",
        "prompt_tokens": 8,
        "new_tokens": 2,
        "rounds": 1,
        "compute_dtype": "float32",
    }
    found = evaluate(EvaluationSettings(str(model), against=str(model), fidelity_tokens=0, **times))
    assert found.speed
    assert found.computed_speed
    assert (found.speed.dtype, found.computed_speed.dtype) == ("bfloat16 as stored", "float32")
    headings = [row[0] for row in speed_rows(found)]
    assert "decode, tokens per second, bfloat16 as stored" in headings
    assert "decode, tokens per second, float32" in headings
    again = Evaluation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert document(again) == document(found)


def test_results_of_one_dtype_are_not_those_of_another(reader: Path, prose: Path, space: Path) -> None:
    options: dict[str, Any] = {"text": str(prose), "sequence_length": 50}
    for dtype in ("auto", "float32", "bfloat16"):
        found = evaluate(EvaluationSettings(str(reader), compute_dtype=dtype, **options), space / "found.json")
        assert found.compute_dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
        assert found.model.perplexity
        assert found.model.perplexity.protocol.endswith(found.compute_dtype)
    assert len(json.loads((space / "found.json").read_text())["finished"]) == 2


def test_an_earlier_result_is_used_for_the_same_question_only(
    reader: Path, prose: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmfold.evaluation.evaluate as module

    out, made = space / "found.json", []
    comparison = module.DenseComparison

    def counting(*arguments: Any, **options: Any) -> Any:
        made.append(arguments)
        return comparison(*arguments, **options)

    monkeypatch.setattr(module, "DenseComparison", counting)
    settings = EvaluationSettings(str(reader), text=str(prose), sequence_length=50)
    first = evaluate(settings, out)
    assert evaluate(settings, out).model.perplexity == first.model.perplexity
    assert len(made) == 1
    evaluate(EvaluationSettings(str(reader), text=str(prose), sequence_length=40), out)
    other = tiny_model(space / "other", seed=5)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((reader / name).read_bytes())
    evaluate(EvaluationSettings(str(other), text=str(prose), sequence_length=50), out)
    assert len(made) == 3
    out.write_text("{}")
    with pytest.raises(UsageError, match=r"found\.json is no evaluation that can be continued"):
        evaluate(settings, out)


def test_what_does_not_fit_is_measured_in_smaller_batches(
    reader: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EvaluationSettings(str(reader), text=str(prose), sequence_length=50)
    roomy, tried, room = evaluate(settings).model.perplexity, list[int](), 3
    dense = DenseComparison.dense

    def scarce(comparison: DenseComparison) -> Scores:
        tried.append(comparison._batch)
        if comparison._batch > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return dense(comparison)

    monkeypatch.setattr(DenseComparison, "dense", scarce)
    found = evaluate(settings).model.perplexity
    assert roomy
    assert found
    assert found.nll == pytest.approx(roomy.nll, rel=1e-5)
    assert list(dict.fromkeys(tried)) == [8, 4, 2]
    room = 0
    with pytest.raises(DeviceError, match="even one sequence at a time"):
        evaluate(settings)
    with pytest.raises(DeviceError, match="the memory of the GPU does not suffice"):
        evaluate(replace(settings, batch_size=64))


def test_a_model_of_several_widths_is_measured_alone_and_beside_another(reader: Path, prose: Path, space: Path) -> None:
    """Its modelling file runs as llmfold writes it, and as anybody else did where that is allowed."""
    options: dict[str, Any] = {"text": str(prose), "sequence_length": 50, "fidelity_tokens": 0}
    folded = fold(reader, layers={0: {"mlp": 0.5}}, output=space / "folded").output
    alone = evaluate(EvaluationSettings(str(folded), **options))
    beside = evaluate(EvaluationSettings(str(folded), against=str(reader), **options))
    assert alone.model.perplexity == beside.model.perplexity != beside.dense.perplexity  # type: ignore[union-attr]
    reversed_ = evaluate(EvaluationSettings(str(reader), against=str(folded), **options))
    assert reversed_.dense.perplexity == alone.model.perplexity  # type: ignore[union-attr]
    with (folded / "modeling_llmfold.py").open("a") as file:
        file.write("# by another hand\n")
    with pytest.raises(CheckpointError, match=r"modeling_llmfold\.py is not what this version of llmfold writes"):
        evaluate(EvaluationSettings(str(folded), **options))
    trusted = evaluate(EvaluationSettings(str(folded), trust_remote_code=True, **options))
    assert trusted.model.perplexity == alone.model.perplexity


def test_a_table_stands_beside_its_json_whatever_the_name(llmfold: Cli, reader: Path, prose: Path, space: Path) -> None:
    common = ("eval", "--model", reader, "--text", prose, "--sequence-length", 50, "--quiet", "--output")
    assert llmfold(*common, space / "fold-0.2") == (0, "", "")
    assert llmfold(*common, space / "scores.json") == (0, "", "")
    assert {"fold-0.2", "fold-0.2.md", "scores.json", "scores.md"} <= {path.name for path in space.iterdir()}
    code, _, stderr = llmfold(*common, space / "scores.md")
    assert (code, "its table would replace it: name it .json" in stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to measure"),
        ({"tasks": "speed"}, "speed is measured beside the dense model: pass --against"),
        ({"tasks": "wikitext2, speed"}, "speed is measured beside the dense model: pass --against"),
        ({"text": "t", "against_revision": "main"}, "--against-revision is a revision of --against, which is missing"),
        ({"text": "t", "compute_dtype": "int8"}, "--compute-dtype is 'int8'"),
        ({"text": "t", "batch_size": 0}, "--batch-size is 0"),
        ({"against": "demo", "fidelity_tokens": -1}, "--fidelity-tokens is -1"),
        ({"text": "t", "rounds": 0}, "--rounds is 0"),
        ({"tasks": "piqa", "new_tokens": 8}, "--new-tokens is of the task speed: pass --tasks speed, or leave it out"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EvaluationSettings("demo", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": "t", "limit": 5}, "--limit counts documents of zero-shot tasks, and none is named"),
        ({"tasks": "wikitext2", "text": "t", "limit": 5}, "--limit counts documents of zero-shot tasks"),
        ({"text": "t", "data_dir": "."}, "--data-dir holds documents of tasks, and none that is named reads them"),
        ({"tasks": "speed", "against": "demo", "data_dir": "."}, "--data-dir holds documents of tasks"),
    ],
)
def test_options_that_no_task_reads_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate(EvaluationSettings("demo", **options))


def test_a_command_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    settings = EvaluationSettings(str(tmp_path / "out"), text=str(tmp_path / "text.txt"), trust_remote_code=True)
    assert settings.command() == "llmfold eval --model out --text text.txt --trust-remote-code"


def test_a_cell_cannot_break_a_table() -> None:
    assert table([["", "a|b"], ["x", "1"]], gap="") == "|  | a\\|b |\n|---|---:|\n| x | 1 |"
