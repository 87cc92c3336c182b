"""Charts as SVG text, without a plotting library: one file, no scripts, no outside resources.

Colours follow the reader's light or dark preference; the chart paints its own background, so it can be read on any
page. Lines and bars carry their names, so there is no legend to look up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from llmfold.report.rendering import render

SHADES = 8
_LIGHT = ("#0b62c4", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#a16207", "#0e7490", "#4b5563")
_DARK = ("#6cb0ff", "#ff9d5c", "#5fd38a", "#b89cff", "#ff8cc0", "#e3b341", "#56d0e0", "#aab4c0")
_WIDTH = 760
_FONT, _SMALL = 14, 12
_TOP, _BOTTOM, _EDGE = 66, 54, 18
_LABEL_GAP = 17
_ROW = 44


@dataclass(frozen=True)
class Point:
    """A measurement at ``x``; ``spread`` is drawn as a whisker of ``y`` ± ``spread``."""

    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class Series:
    """A line, labelled at its right end."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar from zero: its name, a dim note under the name, and a colour in [0, SHADES)."""

    label: str
    value: float
    spread: float = 0.0
    note: str = ""
    shade: int = 0


def percent(value: float) -> str:
    """Render 0.2 as ``20%``."""
    return f"{100 * value:.3g}%"


def plain(value: float) -> str:
    """Render with as many digits as a tick needs."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    raw = (high - low) / max(count, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: decades, or finer where there are few of them."""
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**e for e in decades for d in digits if low * 0.999 <= d * 10.0**e <= high * 1.001]
        if len(ticks) >= 4:
            return ticks
    return ticks if len(ticks) >= 3 else linear_ticks(low, high)


def spaced(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights apart until neighbours are ``gap`` apart, as little as that takes and within [low, high].

    Where there is no room for all, they overlap beyond ``high``.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, list[int]]] = []  # height of the first label, and the labels that stand below it
    for index in order:
        blocks.append((heights[index], [index]))
        while len(blocks) > 1 and blocks[-2][0] + gap * len(blocks[-2][1]) > blocks[-1][0]:
            members = blocks[-2][1] + blocks[-1][1]
            del blocks[-2:]
            start = sum(heights[m] - gap * place for place, m in enumerate(members)) / len(members)
            blocks.append((max(low, min(start, high - gap * (len(members) - 1))), members))
    placed = [0.0] * len(heights)
    floor = low
    for start, members in blocks:
        for place, member in enumerate(members):
            placed[member] = floor = max(start + gap * place, floor)
            floor += gap
    return placed


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    subtitle: str = "",
    x_label: str,
    y_label: str,
    log_y: bool = False,
    level: tuple[str, float] | None = None,
    x_format: Callable[[float], str] = percent,
) -> str:
    """Lines with their names at their right ends.

    Args:
        series: at least one, each with at least one point; values positive if ``log_y``.
        title: what is shown.
        subtitle: a dim line under the title.
        x_label: of the horizontal axis.
        y_label: stands above the vertical axis.
        log_y: whether the vertical axis is logarithmic.
        level: name and height of a dashed line across the chart, such as the dense model.
        x_format: of horizontal ticks.

    Returns:
        The SVG.
    """
    points = [p for s in series for p in s.points]
    heights = [p.y for p in points] + ([level[1]] if level else [])
    low, high = _padded(min(heights), max(heights), log_y)
    left_x, right_x = _padded(min(p.x for p in points), max(p.x for p in points), log=False)
    labels = [(s.label, plain(float(f"{s.points[-1].y:.3g}"))) for s in series]
    left = 64.0
    right = _WIDTH - _EDGE - min(250, 24 + max(_wide(f"{a} {b}", _FONT) for a, b in labels))
    height = max(400, _TOP + _BOTTOM + _LABEL_GAP * len(series))
    bottom = float(height - _BOTTOM)
    scale = math.log10 if log_y else float

    def at_x(x: float) -> float:
        return left + (x - left_x) / (right_x - left_x) * (right - left)

    def at_y(y: float) -> float:
        return bottom - (scale(y) - scale(low)) / (scale(high) - scale(low)) * (bottom - _TOP - 24)

    out = [_text(left - 46, _TOP + 8, y_label)]
    for tick in log_ticks(low, high) if log_y else linear_ticks(low, high):
        out.append(f'<path class="grid" d="M{left} {at_y(tick):.1f}H{right:.1f}"/>')
        out.append(_text(left - 8, at_y(tick) + 4, plain(tick), anchor="end"))
    out += [
        _text(at_x(tick), bottom + 20, x_format(tick), anchor="middle") for tick in linear_ticks(left_x, right_x, 6)
    ]
    out.append(f'<path class="axis" d="M{left} {bottom}H{right:.1f}"/>')
    out.append(_text((left + right) / 2, bottom + 42, x_label, anchor="middle"))
    ends = [at_y(s.points[-1].y) for s in series]
    places = spaced([*ends, *([at_y(level[1])] if level else [])], _LABEL_GAP, _TOP, bottom)
    if level:
        number = plain(float(f"{level[1]:.3g}"))
        out.append(
            f'<path class="level" d="M{left} {at_y(level[1]):.1f}H{right:.1f}L{right + 14:.1f} {places[-1]:.1f}"/>'
            + _text(right + 18, places[-1] + 5, level[0], "t", number=number)
        )
    for index, line in enumerate(series):
        path = "L".join(f"{at_x(p.x):.1f} {at_y(p.y):.1f}" for p in line.points)
        dash = ' stroke-dasharray="6 3"' if index >= SHADES else ""
        out.append(f'<g class="s{index % SHADES}"><path class="line" d="M{path}"{dash}/>')
        for p in line.points:
            if p.spread > 0:
                lower = max(p.y - p.spread, low)
                out.append(f'<path class="whisker" d="M{at_x(p.x):.1f} {at_y(p.y + p.spread):.1f}V{at_y(lower):.1f}"/>')
            out.append(f'<circle cx="{at_x(p.x):.1f}" cy="{at_y(p.y):.1f}" r="3.5"/>')
        place, start = places[index], at_x(line.points[-1].x) + 5
        name, number = labels[index]
        out.append(
            f'<path class="lead" d="M{start:.1f} {ends[index]:.1f}L{right + 14:.1f} {place:.1f}"/>'
            f"{_text(right + 18, place + 5, name, '', number=number)}</g>"
        )
    return _svg(height, title, subtitle, out)


def bar_chart(bars: Sequence[Bar], *, title: str, subtitle: str = "", x_label: str) -> str:
    """Horizontal bars from zero, in the order given; values may be negative.

    Args:
        bars: at least one.
        title: what is shown.
        subtitle: a dim line under the title.
        x_label: of the axis below.

    Returns:
        The SVG.
    """
    low = min(0.0, *(b.value - b.spread for b in bars))
    whole = all(float(b.value).is_integer() and not b.spread for b in bars)  # counts, then
    high = max(0.0, *(b.value + b.spread for b in bars)) or 1e-3
    left = _EDGE + 14 + max(max(_wide(b.label, _FONT), _wide(b.note, _SMALL)) for b in bars)
    right = _WIDTH - _EDGE - 64.0
    height = _TOP + _ROW * len(bars) + _BOTTOM
    bottom = height - _BOTTOM

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    out = []
    for tick in linear_ticks(low, high):
        out.append(f'<path class="grid" d="M{at(tick):.1f} {_TOP}V{bottom}"/>')
        out.append(_text(at(tick), bottom + 18, plain(tick), anchor="middle"))
    for index, bar in enumerate(bars):
        y = _TOP + _ROW * (index + 0.5)
        start, end = sorted((at(0), at(bar.value)))
        tip = max(end, at(bar.value + bar.spread))
        out.append(_text(left - 10, y - (2 if bar.note else -5), bar.label, "t", anchor="end"))
        if bar.note:
            out.append(_text(left - 10, y + 13, bar.note, anchor="end"))
        width = max(end - start, 1.5)
        out.append(
            f'<g class="s{bar.shade % SHADES}"><rect class="bar" x="{start:.1f}" y="{y - 9:.1f}" width="{width:.1f}" '
            f'height="18" rx="2"/></g>'
        )
        if bar.spread > 0:
            out.append(f'<path class="spread" d="M{at(bar.value - bar.spread):.1f} {y:.1f}H{tip:.1f}"/>')
        out.append(_text(tip + 7, y + 5, _value(bar.value, whole=whole), "t"))
    out.append(f'<path class="axis" d="M{at(0):.1f} {_TOP}V{bottom}"/>')
    out.append(_text((left + right) / 2, bottom + 40, x_label, anchor="middle"))
    return _svg(height, title, subtitle, out)


def _value(value: float, *, whole: bool) -> str:
    if whole:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    """The range with a little room at both ends, never empty."""
    if log:
        room = max((high / low) ** 0.05, 1.02)
        return low / room, high * room
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _wide(text: str, size: int) -> float:
    """About how many pixels a text takes in Helvetica."""
    return 0.56 * size * len(text)


def _text(x: float, y: float, text: str, css: str = "d", *, anchor: str = "", number: str = "") -> str:
    """A text of class ``css`` at pixels (x, y), with a small ``number`` behind it."""
    style = (f' class="{css}"' if css else ""), (f' text-anchor="{anchor}"' if anchor else "")
    small = f' <tspan class="v">{number}</tspan>' if number else ""
    return f'<text{style[0]} x="{_pixels(x)}" y="{_pixels(y)}"{style[1]}>{escape(text)}{small}</text>'


def _pixels(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _svg(height: float, title: str, subtitle: str, elements: Sequence[str]) -> str:
    sizes = {"width": _WIDTH, "height": f"{height:g}", "edge": _EDGE, "font": _FONT, "small": _SMALL}
    texts = {"title": escape(title), "subtitle": escape(subtitle), "elements": elements}
    return render("chart.svg", **sizes, **texts, light=_LIGHT, dark=_DARK)
