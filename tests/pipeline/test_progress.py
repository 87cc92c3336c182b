"""What people see while they wait: stage, place, pace and the time that is left."""

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from llmfold.pipeline.progress import INTERVAL, Bar, Lines, Pace


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Shape:
    layers: tuple[int, ...]


@dataclasses.dataclass
class Plan:
    before: Shape


def plan(layers: int) -> Any:
    return Plan(Shape(tuple(range(layers))))


def test_layers_before_the_fold_have_a_place_and_a_pace() -> None:
    clock = Clock()
    pace = Pace(layers=30, clock=clock)
    pace.hear("layer 0: measure")
    assert pace.words == "measure, layer 1 of 30"
    assert pace.remaining is None
    clock.now += 20
    pace.hear("layer 10: measure")
    assert pace.words == "measure, layer 11 of 30, 2.0 s each, 40 s left"
    assert pace.remaining == pytest.approx(40)


def test_tokens_are_counted_as_tokens() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    pace.hear("sampling tokens: 1,024 of 32,768")  # kept from an interrupted run: no work of this clock
    clock.now += 10
    pace.hear("sampling tokens: 11,264 of 32,768")
    assert pace.words == "sampling tokens, 11,264 of 32,768, 1,024/s, 21 s left"


def test_a_fold_counts_finished_layers_and_a_resumed_one_from_where_it_stands() -> None:
    clock, lines = Clock(), io.StringIO()
    listener = Lines(stream=lines, clock=clock)
    listener.opened(8)
    listener.start(plan(8), 2)
    for index in (2, 3):
        listener.stage(f"layer {index}: fold")
        clock.now += 6
        listener.advance()
    assert lines.getvalue() == "folding, layer 5 of 8, 6.0 s each, 24 s left\n"


def test_stages_without_a_count_are_named() -> None:
    pace = Pace(layers=3, clock=Clock())
    pace.hear("reload check")
    assert (pace.words, pace.total) == ("reload check", None)


def test_lines_are_few_and_short_work_prints_none() -> None:
    clock, lines = Clock(), io.StringIO()
    listener = Lines(stream=lines, clock=clock)
    for _ in range(100):
        clock.now += INTERVAL / 101
        listener.stage("reload check")
    assert lines.getvalue() == ""
    for _ in range(100):
        clock.now += 1
        listener.stage("publish")
    assert lines.getvalue().count("\n") == 10
    assert set(lines.getvalue().splitlines()) == {"publish"}


def test_the_bar_fits_80_columns_and_shows_names_as_they_are() -> None:
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with Bar(console=console, clock=clock) as bar:
        bar.opened(126)
        bar.start(plan(126), 0)
        for index in range(100):
            bar.stage(f"layer {index}: fold")
            clock.now += 14.25
            bar.advance()
        bar._progress.refresh()
        assert "folding, layer 101 of 126, 14.2 s each, 6 min left fold" in screen.getvalue()
        bar.stage("measuring [red]name")
        bar._progress.refresh()
        assert "measuring [red]name" in screen.getvalue()
