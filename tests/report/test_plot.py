import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfold.report.plot import (
    Bar,
    Point,
    Series,
    bar_chart,
    line_chart,
    linear_ticks,
    log_ticks,
    percent,
    plain,
    spaced,
)

SVG = "{http://www.w3.org/2000/svg}"


def lines(**options: object) -> ET.Element:
    series = [
        Series("self & more", [Point(0.1, 5), Point(0.2, 9, 1.5)]),
        Series("paper", [Point(0.1, 9), Point(0.2, 90)]),
    ]
    common = {"title": "a < b", "x_label": "removed", "y_label": "perplexity", "log_y": True, "level": ("dense", 4.16)}
    return ET.fromstring(line_chart(series, **{**common, **options}))  # type: ignore[arg-type]


def texts(svg: ET.Element) -> list[str]:
    return ["".join(node.itertext()).strip() for node in svg.iter(SVG + "text")]


def test_lines_are_labelled_with_name_and_last_value() -> None:
    found = texts(lines())
    for words in ("a < b", "removed", "perplexity", "self & more 9", "paper 90", "dense 4.16", "10%", "20%"):
        assert words in found


def test_higher_values_stand_higher_and_inside() -> None:
    svg = lines()
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter(SVG + "circle")]
    (x0, y0), (x1, y1), (_, y2), (_, y3) = circles
    assert x0 < x1
    assert y0 > y1 > y3
    assert y1 == pytest.approx(y2)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    assert all(0 < x < width and 0 < y < height for x, y in circles)
    # On a logarithmic axis equal ratios are equal distances: 5 to 9 against 9 to 90.
    assert (y2 - y3) / (y0 - y1) == pytest.approx(math.log(10) / math.log(9 / 5), rel=0.01)


def test_only_a_spread_has_a_whisker() -> None:
    found = [node for node in lines().iter(SVG + "path") if node.get("class") == "whisker"]
    assert len(found) == 1


def test_a_single_point_and_a_linear_axis_can_be_drawn() -> None:
    svg = ET.fromstring(line_chart([Series("one", [Point(0.2, 3)])], title="t", x_label="x", y_label="y"))
    assert "one 3" in texts(svg)


def test_bars_are_proportional_and_carry_their_values() -> None:
    bars = [Bar("self", 0.2, 0.01, "no data", 1), Bar("paper", 1.0), Bar("better", -0.1)]
    svg = ET.fromstring(bar_chart(bars, title="t", x_label="excess"))
    first, second, third = (r for r in svg.iter(SVG + "rect") if r.get("class") == "bar")
    assert float(second.get("width", "")) == pytest.approx(5 * float(first.get("width", "")), rel=0.01)
    assert float(third.get("x", "")) < float(first.get("x", "")) == float(second.get("x", ""))
    assert {"self", "no data", "paper", "0.200", "1.000", "-0.100", "excess"} <= set(texts(svg))
    counts = ET.fromstring(bar_chart([Bar("a", 1200.0), Bar("b", 3)], title="t", x_label="clusters"))
    assert {"1,200", "3"} <= set(texts(counts))


def test_reads_in_light_and_dark_without_outside_resources() -> None:
    text = bar_chart([Bar("a", 1.0)], title="t", x_label="x")
    assert "prefers-color-scheme: dark" in text
    assert text.count("http") == 1  # the namespace
    assert "<script" not in text


def test_ticks() -> None:
    assert linear_ticks(0, 1.1) == [0, 0.25, 0.5, 0.75, 1]
    assert linear_ticks(0.09, 0.61, 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert log_ticks(4, 700) == [10, 30, 100, 300]
    assert log_ticks(4, 30) == [5, 7, 10, 15, 20, 30]
    assert (percent(0.2), percent(0.125), plain(4.16), plain(36136)) == ("20%", "12.5%", "4.16", "36,136")


@given(low=st.floats(1e-3, 1e4), factor=st.floats(1.05, 1e6))
def test_there_are_a_few_ticks_and_all_lie_on_the_axis(low: float, factor: float) -> None:
    for ticks in (log_ticks(low, low * factor), linear_ticks(low, low * factor)):
        assert 2 <= len(ticks) <= 14
        assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)
        assert ticks == sorted(set(ticks))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=15))
def test_labels_keep_apart_in_the_order_of_their_lines(wanted: list[float]) -> None:
    placed = spaced(wanted, 17, 0, 300)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    heights = [placed[i] for i in order]
    assert all(b - a >= 17 - 1e-6 for a, b in itertools.pairwise(heights))
    assert all(-1e-6 <= h <= 300 + 1e-6 for h in heights)


def test_labels_with_room_stay_where_they_are() -> None:
    assert spaced([100, 10, 50], 17, 0, 300) == [100, 10, 50]
