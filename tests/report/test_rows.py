import pytest

from llmfold.report.rows import main_stages, stage_rows, without_empty_columns


def test_empty_columns_go_and_the_first_stays() -> None:
    rows = [["layer", "MLP", "by", "heads"], ["–", "4 → 2", "", "–"], ["–", "–", "", ""]]
    assert without_empty_columns(rows) == [["layer", "MLP"], ["–", "4 → 2"], ["–", "–"]]


def test_a_table_without_rows_keeps_its_first_heading() -> None:
    assert without_empty_columns([["layer", "MLP"]]) == [["layer"]]


def test_stages_under_one_percent_share_a_row_and_the_sum_stays() -> None:
    seconds = {"read": 0.2, "fold": 90.0, "norm": 0.3, "check": 9.5, "never": 0.0}
    stages = main_stages(seconds)
    assert [name for name, _ in stages] == ["fold", "check", "other"]
    assert sum(spent for _, spent in stages) == pytest.approx(100.0)
    assert main_stages({"fold": 1.0, "check": 2.0}) == [("fold", 1.0), ("check", 2.0)]
    assert main_stages({}) == []
    assert main_stages({"fold": 0.0}) == []


def test_stages_stand_in_seconds_and_in_forward_passes() -> None:
    heading = ("stage", "seconds", "forward passes")
    rows = [("forward", "50.0", "1.0"), ("refine", "1,250.0", "25.0"), ("together", "1,300.0", "26.0")]
    assert stage_rows({"forward": 50.0, "refine": 1250.0}, 50.0) == [heading, *rows]
    assert [row[2] for row in stage_rows({"forward": 10.0}, None)] == ["forward passes", "", ""]
    assert stage_rows({}, 1.0) == [heading]
