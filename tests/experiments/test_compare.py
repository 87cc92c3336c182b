import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llmfold
from llmfold import LlmfoldError, UsageError
from llmfold.errors import DeviceError
from llmfold.evaluation.dense_comparison import DenseComparison
from llmfold.experiments import compare as module
from llmfold.experiments.compare import Comparison, compare
from llmfold.experiments.settings import Settings

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def settings(reader: Path, prose: Path, space: Path) -> Callable[..., Settings]:
    def make(**options: Any) -> Settings:
        defaults = {
            **{"model": str(reader), "methods": "paper,random", "text": str(prose), "output": space / "table"},
            **{"mlp_ratio": (0.25,), "seeds": 2, "sequence_length": 50, "fidelity_tokens": 256},
        }
        return Settings(**{**defaults, **options})

    return make


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return content


def counting(monkeypatch: pytest.MonkeyPatch, fail_at: int = -1, error: BaseException | None = None) -> list[Any]:
    """Count folds; the one numbered ``fail_at`` raises ``error``."""
    folds: list[Any] = []

    def fold(config: Any, **options: Any) -> Any:
        folds.append(config)
        if error is not None and len(folds) - 1 == fail_at:
            raise error
        return llmfold.fold(config, **options)

    monkeypatch.setattr(module, "fold", fold)
    return folds


def test_writes_table_picture_and_data_and_nothing_else(settings: Callable[..., Settings], space: Path) -> None:
    found = compare(settings())
    assert sorted(os.listdir(space)) == ["table"]
    assert sorted(os.listdir(space / "table")) == ["compare.json", "compare.md", "compare.svg", "report.html"]
    lines = [line for line in (space / "table" / "compare.md").read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["| method", "| dense", "| paper", "| random"]
    paper, random = found.rows
    assert found.dense.perplexity is not None
    assert paper.perplexity is not None
    assert paper.excess is not None
    assert paper.excess.mean == pytest.approx(math.log(paper.perplexity.mean / found.dense.perplexity.mean))
    assert paper.perplexity.deviation == 0
    assert random.perplexity is not None
    assert random.perplexity.deviation > 0
    assert "±" in lines[3]
    assert "±" not in lines[2]


def test_numbers_are_those_of_the_folded_model(settings: Callable[..., Settings], prose: Path, space: Path) -> None:
    from llmfold.evaluation.evaluate import evaluate
    from llmfold.evaluation.options import EvaluationSettings

    compare(settings(keep=True, seeds=1, methods="paper"))
    (run,) = read(space / "table")["runs"]
    folded = space / "table-models" / "paper-mlp_ratio-0.25-seed-0"
    model = settings().model
    options = {
        "text": str(prose),
        "against": model,
        "sequence_length": 50,
        "fidelity_tokens": 256,
        "compute_dtype": "float32",
    }
    found = evaluate(EvaluationSettings(str(folded), **options))
    assert found.model.perplexity is not None
    assert found.fidelity is not None
    assert (run["perplexity"], run["kl"], run["top1"]) == (
        found.model.perplexity.value,
        found.fidelity.kl,
        found.fidelity.top1,
    )
    report = json.loads((folded / "report.json").read_text())
    assert run["parameters"] == report["plan"]["parameters"]["after"]
    assert run["removed"] == report["plan"]["ratio"]


def test_results_are_used_again_for_the_same_settings_only(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, space: Path
) -> None:
    first = compare(settings())
    folds = counting(monkeypatch)
    assert compare(settings()) == first
    assert folds == []
    compare(settings(seeds=3))
    assert len(folds) == 1  # random again; no seed moves paper
    compare(settings(methods="paper"))
    compare(settings())
    assert len(folds) == 1
    compare(settings(methods="paper", seeds=1, recompute=True))
    compare(settings(methods="paper", seeds=1, windows=3))
    assert len(folds) == 3
    monkeypatch.setattr("llmfold.environment.__version__", "9.9.9")
    compare(settings(methods="paper", seeds=1))
    assert len(folds) == 4
    assert len(read(space / "table")["rows"]) == 1


def test_an_interrupted_comparison_goes_on_where_it_stopped(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, space: Path
) -> None:
    counting(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compare(settings())
    assert len(read(space / "table")["runs"]) == 2
    folds = counting(monkeypatch)
    compare(settings())
    assert len(folds) == 1
    assert sorted(os.listdir(space)) == ["table"]


@pytest.mark.parametrize("error", [LlmfoldError("a disk at /mnt/far/away.bin\nburnt"), ZeroDivisionError("by zero")])
def test_a_method_that_fails_is_listed_with_its_reason(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, space: Path, error: Exception
) -> None:
    counting(monkeypatch, 0, error)
    found = compare(settings(seeds=1))
    paper, random = found.rows
    assert (paper.seeds, paper.perplexity, random.seeds) == (0, None, 1)
    reason = "a disk at away.bin burnt" if isinstance(error, LlmfoldError) else "unexpected ZeroDivisionError: by zero"
    assert paper.errors == (reason,)
    assert f"- paper: {reason}" in (space / "table" / "compare.md").read_text()
    folds = counting(monkeypatch)
    assert compare(settings(seeds=1)).rows[0].errors == ()
    assert len(folds) == 1


def test_measuring_beyond_the_memory_of_a_gpu_says_what_to_do(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    measure = DenseComparison.measure
    monkeypatch.setattr(DenseComparison, "measure", full)
    advice = "pass a smaller --batch-size, or --device cpu"
    rows = compare(settings(seeds=1)).rows
    assert [row.errors for row in rows] == [(f"the memory of the GPU does not suffice: {advice}",)] * 2
    monkeypatch.setattr(DenseComparison, "measure", measure)
    monkeypatch.setattr(DenseComparison, "dense", full)
    with pytest.raises(DeviceError, match=advice):
        compare(settings(recompute=True))


def test_debug_lets_bugs_through(settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    counting(monkeypatch, 0, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        compare(settings(), debug=True)


def test_a_ratio_out_of_reach_is_a_row_and_several_ratios_make_lines(
    settings: Callable[..., Settings], space: Path
) -> None:
    found = compare(settings(mlp_ratio=(), ratio=(0.1, 0.2, 0.99), ratio_of="decoder", seeds=1))
    assert [len(section.rows) for section in found.sections] == [3, 3, 3]
    assert all("cannot be met" in row.errors[0] for row in found.rows[4:])
    picture = (space / "table" / "compare.svg").read_text()
    assert picture.count('class="line"') == 2
    assert "fraction of decoder parameters removed" in picture


def test_nothing_measured_leaves_no_picture(settings: Callable[..., Settings], space: Path) -> None:
    found = compare(settings(mlp_ratio=(), ratio=(0.99,), methods="paper", seeds=1))
    assert found.rows[0].perplexity is None
    assert sorted(os.listdir(space / "table")) == ["compare.json", "compare.md", "report.html"]
    assert "<svg" not in (space / "table" / "report.html").read_text()


def test_without_fidelity_its_columns_are_empty(settings: Callable[..., Settings], space: Path) -> None:
    found: Comparison = compare(settings(fidelity_tokens=0, methods="paper", seeds=1))
    assert (found.dense.kl, found.rows[0].kl, found.rows[0].top1) == (None, None, None)
    assert "Fidelity:" not in (space / "table" / "compare.md").read_text()


def test_outside_text_is_named_and_no_folder_is(
    settings: Callable[..., Settings], prose: Path, reader: Path, space: Path
) -> None:
    options = {"methods": "wanda-sp,random", "data": str(prose), "num_samples": 2, "seeds": 1}
    compare(settings(**options))
    for name in ("compare.md", "compare.json", "compare.svg", "report.html"):
        content = (space / "table" / name).read_text()
        assert "outside text: prose.txt" in content
        assert all(str(folder) not in content for folder in (space, prose.parent, reader.parent))


def test_a_folder_with_something_else_is_refused(settings: Callable[..., Settings], space: Path) -> None:
    (space / "table").mkdir()
    (space / "table" / "compare.json").write_text("{}")
    with pytest.raises(UsageError, match="no comparison that can be continued"):
        compare(settings())
    assert os.listdir(space / "table") == ["compare.json"]


def test_command_line(llmfold: Cli, reader: Path, prose: Path, space: Path) -> None:
    arguments = (
        *("compare", "--model", reader, "--methods", "paper,paper:align=gauge", "--text", prose, "--seeds", 1),
        *("--mlp-ratio", "0.25", "--sequence-length", 50, "--fidelity-tokens", 128, "--output", space / "table"),
    )
    code, stdout, stderr = llmfold(*arguments)
    assert code == 0, stderr
    assert "paper:align=gauge" in stdout
    assert "2/2 paper:align=gauge, mlp-ratio 0.25, seed 0: perplexity" in stderr
    assert llmfold(*arguments, "--quiet") == (0, "", "")
    assert read(space / "table")["command"] in (space / "table" / "compare.md").read_text()


BAD: dict[str, tuple[tuple[object, ...], int, str]] = {
    "no model": (("compare", "--ratio", 0.2), 2, "--model is missing"),
    "unknown option": (("compare", "--ratoi", 0.2), 2, "no option --ratoi"),
    "no number": (("compare", "--ratio", "0.1,x"), 2, "'0.1,x'"),
    "unknown method": (("compare", "--model", "M", "--methods", "magic", "--text", "T", "--output", "O"), 2, "'magic'"),
    "no amount": (("compare", "--model", "M", "--methods", "paper", "--text", "T", "--output", "O"), 2, "how much"),
    "nothing to evaluate": (("eval", "--model", "M"), 2, "nothing to measure"),
    "absent text": (("eval", "--model", "M", "--text", "absent.txt"), 2, "absent.txt does not exist"),
    "absent model": (("eval", "--model", "./absent", "--text", "T"), 1, "./absent"),
    "too long": (("eval", "--model", "M", "--text", "T", "--sequence-length", 4096), 2, "maximum of 128"),
    "bad dtype": (
        ("eval", "--model", "M", "--text", "T", "--dtype", "int8"),
        2,
        "invalid choice: 'int8'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_sentence(llmfold: Cli, reader: Path, prose: Path, space: Path, case: str) -> None:
    arguments, expected, words = BAD[case]
    places: dict[object, Path] = {"M": reader, "T": prose, "O": space / "out"}
    code, stdout, stderr = llmfold(*(places.get(argument, argument) for argument in arguments))
    assert (code, stdout) == (expected, "")
    assert stderr.startswith("llmfold: ")
    assert stderr.count("\n") == 1
    assert words in stderr
    assert os.listdir(space) == []
