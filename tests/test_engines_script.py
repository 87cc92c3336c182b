"""eval/engines: what is compared, how runners are called, and that a wrong tensor is noticed."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "eval" / "engines"))
import blocks  # type: ignore[import-not-found]
import cases  # type: ignore[import-not-found]
import environments  # type: ignore[import-not-found]
import matrix  # type: ignore[import-not-found]
import quantisers  # type: ignore[import-not-found]
from agreement import compare  # type: ignore[import-not-found]
from calling import call, seconds_spent  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from runner import MARK  # type: ignore[import-not-found]

from llmfold.engines import ENGINES, Verdict

TABLE = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
AMONG = [[[1, 2, 9], [-1.0, -2.0, -3.0]], [[2, 7, 9], [-1.0, -1.0005, -3.0]], [[3, 4], [-1.0, -1.5]]]
REFERENCE = {"greedy": [1, 2, 3], "read": [[1], [2]], "among": AMONG}
TOP = [[[0, 1], TABLE[0, :2].tolist()], [[2, 1], TABLE[1, [2, 1]].tolist()]]


def answer(**changes: Any) -> dict[str, Any]:
    return {"top": TOP, "next": TABLE[1].tolist(), "greedy": [1, 2, 3], "read": [[1], [2]], "seconds": 1, **changes}


def test_an_equal_answer_has_no_faults() -> None:
    found = compare(answer(), REFERENCE, TABLE, "float32")
    assert (found.faults, found.largest, found.same, found.texts) == ((), 0, 3, True)


@pytest.mark.parametrize(
    ("changes", "dtype", "word"),
    [
        ({"top": [TOP[0], [[2, 1], [-0.3, -1.7]]]}, "float32", "log-probability"),
        ({"top": [TOP[0], [[2, 1], [-0.36, 3.0]]]}, "bfloat16", "log-probability"),
        ({"top": [TOP[0], [[2, 1], [float("nan"), 0.0]]]}, "bfloat16", "not finite"),
        ({"top": TOP[:1]}, "float32", "missing"),
        ({"next": [0.0, 0.0, 0.0]}, "float32", "next token"),
        ({"greedy": [1, 2, 4]}, "float32", "after 2"),
        ({"greedy": [1, 2]}, "float32", "after 2"),
        ({"read": [[1], [3]]}, "bfloat16", "tokenizer"),
    ],
)
def test_what_is_beyond_tolerance(changes: dict[str, Any], dtype: str, word: str) -> None:
    (fault, *_) = compare(answer(**changes), REFERENCE, TABLE, dtype).faults
    assert word in fault


def test_tolerance_is_wider_for_a_model_that_says_so() -> None:
    moved = answer(top=[TOP[0], [[2, 1], (TABLE[1, [2, 1]] + 5e-4).tolist()]])
    assert len(compare(moved, REFERENCE, TABLE, "float32").faults) == 2
    assert compare(moved, REFERENCE, TABLE, "float32", 10).faults == ()


def test_a_token_that_rounding_sends_to_another_expert_is_no_fault_and_a_wrong_tensor_is() -> None:
    """One position of three may differ by anything in bfloat16; all of them may not, and none in single precision."""
    table = np.concatenate([TABLE, TABLE[:1]])
    lines = [*TOP, TOP[0]]
    moved = [[ids, [value - step for value in values]] for (ids, values), step in zip(lines, (0, 3.0, 0), strict=True)]
    one, told = answer(top=moved, next=None), {"reference": REFERENCE, "table": table, "routed": True}
    found = compare(one, dtype="bfloat16", **told)
    assert (found.faults, found.mean, found.largest) == ((), 0, pytest.approx(3.0))
    assert len(compare(one, dtype="float32", **told).faults) == 2
    assert len(compare(one, REFERENCE, table, "bfloat16").faults) == 2
    wrong = [[ids, [value - 0.15 for value in values]] for ids, values in lines]
    (fault,) = compare(answer(top=wrong, next=None), dtype="bfloat16", **told).faults
    assert "on average" in fault


def test_of_two_tokens_as_likely_either_may_be_written() -> None:
    found = compare(answer(greedy=[1, 7, 8]), REFERENCE, TABLE, "float32")
    assert (found.faults, found.same, found.tie) == ((), 1, True)


def test_close_calls_may_fall_either_way_in_bfloat16() -> None:
    assert compare(answer(greedy=[1, 4, 5]), REFERENCE, TABLE, "bfloat16").faults == ()


def row(verdict: Verdict, said: dict[str, Any]) -> Any:
    case = cases.Case(cases.MODELS[0], cases.DENSE, "float32", Path("none"))
    agreement = None if "error" in said else compare(said, REFERENCE, TABLE, "float32")
    return Row(case, environments.ENGINES[0], verdict, said, agreement)


@pytest.mark.parametrize(
    ("verdict", "said", "right"),
    [
        (Verdict(True), answer(), True),
        (Verdict(False, "no"), answer(), False),
        (Verdict(True), {"error": "ValueError"}, False),
        (Verdict(False, "no"), {"error": "ValueError"}, True),
        (Verdict(False, "no"), {"error": "not done after 300 s"}, False),
        (Verdict(True, flag="--trust"), answer(without_flag="refused"), True),
        (Verdict(True, flag="--trust"), answer(without_flag=None), False),
        (Verdict(True, tokenizer=False), answer(), False),
        (Verdict(True, tokenizer=False), answer(read="ValueError"), True),
        (Verdict(True), answer(read="ValueError"), False),
        (Verdict(True, agrees=False), answer(), False),
        (Verdict(True, agrees=False), answer(greedy=[9]), True),
        (Verdict(True), answer(greedy=[9]), False),
    ],
)
def test_doctor_and_what_happened_must_agree(verdict: Verdict, said: dict[str, Any], right: bool) -> None:
    assert (row(verdict, said).faults == []) == right


RUNNER = """
import json, os, sys
sys.path.insert(0, {place!r})
from runner import serve
def answer(job):
    print("noise")
    if job["name"] == "dies":
        os._exit(3)
    if job["name"] == "fails":
        raise ValueError("no such class")
    return {{"greedy": [1]}}
serve(answer)
"""


def jobs(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


def test_a_model_that_ends_its_process_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "runner_of_test.py"
    script.write_text(RUNNER.format(place=str(ROOT / "eval" / "engines")))
    monkeypatch.setattr(environments, "HERE", tmp_path)
    engine = replace(environments.ENGINES[0], runner=script.name)
    answers = call(engine, tmp_path, jobs(["first", "fails", "dies", "last"]), tmp_path / "log")
    assert answers["first"]["greedy"] == answers["last"]["greedy"] == [1]
    assert answers["fails"]["error"] == "ValueError: no such class"
    assert "ended with 3" in answers["dies"]["error"]
    assert 0 < seconds_spent(tmp_path / "log") < 60


def test_what_has_been_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [cases.Case(cases.MODELS[1], variant, "float32", tmp_path) for variant in (cases.DENSE, cases.NARROWER)]
    (tmp_path / "config.json").write_text("{}")
    asked: list[str] = []

    def answered(_: Any, __: Path, jobs: Sequence[dict[str, Any]], log: Path) -> dict[str, Any]:
        asked.extend(job["name"] for job in jobs)
        found = {job["name"]: {"name": job["name"], "greedy": [len(asked)]} for job in jobs}
        with log.open("a") as file:
            file.writelines(f"{MARK}{json.dumps(each)}\n" for each in found.values())
        return found

    monkeypatch.setattr(matrix, "call", answered)
    monkeypatch.setattr(matrix, "tokenizer_ids", lambda *_: [1])
    engine = environments.ENGINES[0]
    matrix.ask(engine, todo[:1], tmp_path, spoil=False, missing=True)
    found = matrix.ask(engine, todo, tmp_path, spoil=False, missing=True)
    assert asked == [case.name for case in todo]
    assert [found[case.name]["greedy"] for case in todo] == [[1], [2]]


def test_a_runner_that_is_late_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(environments, "HERE", tmp_path)
    engine = replace(environments.ENGINES[0], runner="slow.py", seconds=1)
    assert "not done after 1 s" in call(engine, tmp_path, jobs(["one"]), tmp_path / "log")["one"]["error"]


def test_every_engine_of_the_matrix_has_rules_and_every_block_an_engine() -> None:
    assert [engine.key for engine in environments.ENGINES] == list(ENGINES)
    found = list(blocks.blocks(blocks.PAGE.read_text(encoding="utf-8")))
    assert {block.engine for block in found} <= set(ENGINES)
    assert blocks.PAGE.read_text(encoding="utf-8").count("<!--engine:") == len(found)


def test_the_page_of_quantisers_has_what_was_done_and_why_not(tmp_path: Path) -> None:
    models = {"dense": tmp_path / "a", "folded": tmp_path / "b"}
    tools = (quantisers.PLAIN, *quantisers.TOOLS)
    answers = {
        tool.key: {
            job["name"]: {"error": "ValueError: no | such group"}
            if job["group"] == 128
            else {"perplexity": 26.444, "version": "1.2"}
            for job in quantisers.jobs(tool, models, tmp_path)
        }
        for tool in tools
    }
    windows = quantisers.Windows(np.zeros((1, 2)), 2, "one window")
    page = quantisers.page_of(models, answers, windows, "python it")
    assert "| dense | as it is, in float32 |  |  | 26.44 |" in page
    assert "| folded | llm-compressor | GPTQ | 128 | not done |" in page
    assert "- dense; folded: llm-compressor, GPTQ, groups of 128: ValueError: no / such group" in page
    assert "GPTQModel 1.2" in page


@pytest.mark.slow
def test_a_wrong_tensor_is_noticed_and_a_right_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(cases.MODELS[1], folds={cases.NARROWER: cases.MODELS[1].folds[cases.NARROWER]})
    monkeypatch.setattr(cases, "MODELS", (model,))
    arguments = ["matrix.py", "--work", str(tmp_path), "--engines", "transformers"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--page", str(tmp_path / "page.md")])
    assert matrix.main() == 0
    assert "narrower MLP" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr(sys, "argv", [*arguments, "--spoil"])
    assert matrix.main() == 0
    monkeypatch.setattr(matrix, "spoiled", lambda case, work: case.folder)
    assert matrix.main() == 1
    assert {found["engine"] for found in json.loads((tmp_path / "rows.json").read_text())} == {"transformers"}
