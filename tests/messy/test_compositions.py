"""A sample of messy checkpoints that are composed at random; ``eval/messy_checkpoints.py`` does thousands."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmfold.pipeline import opening
from llmfold.pipeline.run import Run
from messy.draft import Base
from messy.faults import GRAVE, KINDS, LIGHT
from messy.generator import Composition, compositions
from messy.judge import FINE, NOT_LOADED, REFUSED, judge, reason_of, reasons, says_what_to_do

SOUND = Base("llama", False, "float32")


@pytest.mark.parametrize(("whole", "count", "outcomes"), [(False, 52, (FINE, REFUSED, NOT_LOADED)), (True, 8, (FINE,))])
def test_what_stock_loads_is_folded_alike_or_refused_in_a_sentence(
    tmp_path: Path, whole: bool, count: int, outcomes: tuple[str, ...]
) -> None:
    found: Counter[str] = Counter()

    @settings(
        derandomize=True, database=None, deadline=None, max_examples=count, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(compositions())
    def sample(composition: Composition) -> None:
        case = judge(composition, tmp_path, whole=whole)
        found[case.outcome] += 1
        assert case.outcome != "fault", (composition, case)

    sample()
    assert found.keys() >= set(outcomes)


def test_reasons_are_few_and_say_why() -> None:
    assert 0 < len(reasons()) <= 10
    assert all(each.keys() == {"reason", "sentence", "why"} for each in reasons())
    assert reason_of("unexpected KeyError: 3; run again with --debug and report it") == ""


def test_the_judge_asks_for_a_remedy() -> None:
    assert not says_what_to_do("vocab_size in config.json is -1, not a positive integer")
    assert says_what_to_do("vocab_size in config.json is -1, not a positive integer: correct it")


def fault(kind: str, number: int) -> Composition:
    return Composition(SOUND, ((kind, number), ("shards", 0)))


def test_the_judge_notices_what_is_accepted_though_stock_does_not_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = fault("a bad generation config", 5)
    assert judge(bad, tmp_path, whole=False).outcome == NOT_LOADED
    monkeypatch.setattr(opening, "check_generation_config", lambda *given: None)
    assert judge(bad, tmp_path, whole=False).sentence == "accepted, and stock does not load it"
    assert "refused after the plan" in judge(bad, tmp_path, whole=True).sentence


def test_the_judge_notices_a_file_that_is_lost_and_one_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = fault("the generation config", 1)
    assert judge(usual, tmp_path, whole=True).outcome == FINE
    copy = Run._complete_folder

    def lossy(run: Run) -> dict[str, str]:
        digests = copy(run)
        (run.work.folder / "generation_config.json").unlink()
        return digests

    monkeypatch.setattr(Run, "_complete_folder", lossy)
    assert judge(usual, tmp_path, whole=True).sentence.startswith("generation config: bos_token_id")
    assert list(tmp_path.iterdir()) == []


@given(compositions() | st.sampled_from([fault("links", 0)]))
@settings(derandomize=True, database=None, max_examples=20, suppress_health_check=list(HealthCheck))
def test_a_composition_is_plain_data(composition: Composition) -> None:
    assert Composition.of(composition.to_json()) == composition
    assert 2 <= len(composition.faults) <= 5
    assert {kind for kind, _ in composition.faults} <= KINDS.keys()
    assert not LIGHT.keys() & GRAVE.keys()
    assert LIGHT.keys() | GRAVE.keys() == KINDS.keys()


@pytest.mark.parametrize("number", range(len(KINDS["a bad index"].values)))
def test_a_fault_bears_what_another_has_taken_away(tmp_path: Path, number: int) -> None:
    """As an index that lists a tensor elsewhere does an index that lists none."""
    faults = [("a bad index", 5), ("a bad index", number), ("the index", 2)]
    assert Composition(SOUND, tuple(faults)).write(tmp_path / "m").is_dir()


@pytest.mark.parametrize(("family", "outcome"), [("llama", FINE), ("qwen2", REFUSED)])
def test_a_tokenizer_is_read_alike_without_its_auto_map_or_refused(tmp_path: Path, family: str, outcome: str) -> None:
    code = Composition(Base(family, True, "bfloat16"), (("settings of the tokenizer", 21), ("a file beside", 17)))
    case = judge(code, tmp_path, whole=True)
    assert (case.outcome, case.reason) == (outcome, "code of its own" if outcome == REFUSED else "")
