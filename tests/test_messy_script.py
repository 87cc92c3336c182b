"""The script that judges messy checkpoints by the thousand: the same cases of a seed, each once, counted on a page."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    monkeypatch.delitem(sys.modules, "messy_checkpoints", raising=False)
    import messy_checkpoints

    monkeypatch.setattr(messy_checkpoints, "BATCH", 3)
    monkeypatch.setattr(messy_checkpoints, "PAGE", tmp_path / "page.md")
    return messy_checkpoints


def test_a_seed_is_judged_once_and_counted(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from messy.judge import Case

    outcomes = iter(
        [
            *(Case("folded", "", "", ""), Case("refused", "an adapter", "x", ""), Case("fault", "", "wrong", "")),
            *(Case("refused by both", "", "x", "E"), Case("refused by both", "", "", "not finite")),
            Case("folded", "", "", ""),
        ]
    )
    judged: list[Any] = []

    def judge(composition: object, space: Path, *, whole: bool) -> Case:
        judged.append(composition)
        return next(outcomes)

    monkeypatch.setattr(script, "judge", judge)
    options = {"cases": tmp_path / "cases.jsonl", "whole": False, "minutes": 1, "scratch": tmp_path, "first": 0}
    script.run(SimpleNamespace(**options, count=3))
    script.run(SimpleNamespace(**options, count=6))
    cases = [json.loads(line) for line in options["cases"].read_text().splitlines()]
    assert [(case["seed"], case["place"]) for case in cases] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert judged == [*script.drawn(0), *script.drawn(1)]
    assert '"wrong"' in capsys.readouterr().out
    script.page(SimpleNamespace(**options))
    page = script.PAGE.read_text()
    assert "| compositions | 6 | 0 |" in page
    assert "| neither: a fault of llmfold | 1 | 0 |" in page
    assert "| of these refused in a sentence | 1 | 0 |" in page
    assert "| an adapter | 1 | 0 |" in page
    assert "\npython eval/messy_checkpoints.py run --first 0 --count 6\n" in page
