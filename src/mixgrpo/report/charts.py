"""Charts as inline SVG: curves, heat-maps and stacked bars. Colours are classes of the page's style sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from mixgrpo.report.axes import Axis, range_axis, thin, value_axis

WIDTH, HEIGHT = 460, 236
"""Units of a chart's drawing area; a panel of the page is about as many pixels wide, so text keeps its size."""

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 20, 34
"""Margins for tick labels and axis names."""

MAX_POINTS = 400
"""Points of a curve that are drawn; a longer curve keeps its lows and highs."""

Style = Literal["line", "faint", "marked", "dots", "bars"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One set of points of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    """Number of a colour of the style sheet, 1 to 6."""
    style: Style = "line"
    errors: Sequence[float] = ()
    """Half-lengths of error bars, one per point."""
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Curves over one horizontal axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_range: tuple[float, float]
    whole_x: bool = False
    from_zero: bool = False
    whole_y: bool = False
    levels: Mapping[str, float] | None = None
    """Named horizontal lines."""
    ring: tuple[float, float, str] | None = None
    """A point to ring, and its name."""


def line_chart(chart: Chart) -> str:
    """Return a chart of curves as an SVG element."""
    levels = dict(chart.levels or {})
    values = [y for series in chart.series for _, y in series.points if math.isfinite(y)]
    for series in chart.series:
        for (_, y), error in zip(series.points, series.errors, strict=False):
            values += [y - error, y + error]
    y_axis = value_axis([*values, *levels.values()], from_zero=chart.from_zero, whole=chart.whole_y)
    x_axis = range_axis(*chart.x_range, whole=chart.whole_x)
    parts = [_frame(x_axis, y_axis, chart.x_label, chart.y_label)]
    parts += [_level(name, y, y_axis) for name, y in levels.items()]
    # Bars and faint lines go below, whatever the order of the legend.
    for series in sorted(chart.series, key=lambda s: ("bars", "faint", "line", "marked", "dots").index(s.style)):
        parts.append(_draw(series, x_axis, y_axis))
    if chart.ring is not None:
        parts.append(_ring(chart.ring, x_axis, y_axis))
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _svg("".join(parts), chart.title, _hover_data(chart, x_axis))


def _svg(content: str, title: str, hover: str = "") -> str:
    data = f' data-hover="{escape(hover)}"' if hover else ""
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"{data}>'
        f"{content}</svg>"
    )


def _hover_data(chart: Chart, x_axis: Axis) -> str:
    series = [
        {
            "name": s.name,
            "color": s.color,
            "points": [_rounded(p) for p in thin(s.points, MAX_POINTS) if _is_real(p)],
        }
        for s in chart.series
    ]
    frame = {"x": [x_axis.low, x_axis.high], "left": LEFT, "right": WIDTH - RIGHT, "width": WIDTH}
    return json.dumps({**frame, "label": chart.x_label, "series": series}, separators=(",", ":"))


def _is_real(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _rounded(point: tuple[float, float]) -> list[float]:
    return [float(f"{number:.6g}") for number in point]


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    parts: list[str] = []
    for tick in y_axis.ticks:
        y = _y(tick, y_axis)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{y_axis.label(tick)}</text>')
    return (
        "".join(parts)
        + _x_axis(x_axis, x_label)
        + f'<text class="name" x="0" y="10">{escape(y_label)}{y_axis.unit}</text>'
    )


def _x_axis(axis: Axis, label: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for tick in axis.ticks:
        x = _x(tick, axis)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{bottom + 15}">{axis.label(tick)}</text>')
    parts.append(f'<text class="name end" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}">{escape(label)}{axis.unit}</text>')
    return "".join(parts)


def _x(value: float, axis: Axis) -> float:
    return axis.place(value, LEFT, WIDTH - RIGHT)


def _y(value: float, axis: Axis) -> float:
    return axis.place(value, HEIGHT - BOTTOM, TOP)


def _level(name: str, value: float, axis: Axis) -> str:
    y = _y(value, axis)
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="note end" x="{WIDTH - RIGHT}" y="{y - 4:.1f}">{escape(name)}</text>'
    )


def _draw(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    errors = dict(zip((x for x, _ in series.points), series.errors, strict=False))
    points = thin(series.points, MAX_POINTS)
    places = [(_x(x, x_axis), _y(y, y_axis)) if _is_real((x, y)) else None for x, y in points]
    real = [place for place in places if place is not None]
    if series.style == "bars":
        width = max(1.5, 0.7 * (WIDTH - LEFT - RIGHT) / (x_axis.high - x_axis.low + 1))
        zero = _y(0.0, y_axis)
        path = "".join(f"M{x:.1f} {zero:.1f}V{y:.1f}" for x, y in real if y < zero)
        return f'<path class="bars c{series.color}" style="stroke-width:{min(width, 14):.1f}" d="{path}"/>'
    parts: list[str] = []
    if series.style != "dots":
        parts.append(f'<path class="{series.style} c{series.color}" d="{_line(places)}"/>')
    for x, y in points:
        error = errors.get(x, math.nan)
        if _is_real((y, error)):
            place = f"M{_x(x, x_axis):.1f} {_y(y - error, y_axis):.1f}V{_y(y + error, y_axis):.1f}"
            parts.append(f'<path class="error c{series.color}" d="{place}"/>')
    # A line of one point is invisible, so it gets its dot too.
    if series.style in ("marked", "dots") or len(real) == 1:
        parts += [f'<circle class="c{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="2.8"/>' for x, y in real]
    return "".join(parts)


def _line(places: Sequence[tuple[float, float] | None]) -> str:
    commands, pen = "", "M"
    for place in places:
        if place is not None:
            commands += f"{pen}{place[0]:.1f} {place[1]:.1f}"
        pen = "M" if place is None else "L"
    return commands


def _ring(ring: tuple[float, float, str], x_axis: Axis, y_axis: Axis) -> str:
    x, y = _x(ring[0], x_axis), _y(ring[1], y_axis)
    side = "end" if x > WIDTH / 2 else ""
    above = y - 11 if y > TOP + 16 else y + 18
    return (
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>'
        f'<text class="note strong {side}" x="{x + (6 if side else -6):.1f}" y="{above:.1f}">{escape(ring[2])}</text>'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """Rows (denoising steps) by columns (stretches of iterations)."""

    title: str
    cells: Sequence[Sequence[float | None]]
    """[row][column] in [0, 1]: how strong the colour is; None leaves the cell empty."""
    x_range: tuple[float, float]
    color: int


def heat_map(chart: HeatMap) -> str:
    """Return a heat-map as an SVG element, the first row (the noisiest step) on top."""
    rows, columns = len(chart.cells), max((len(row) for row in chart.cells), default=0)
    x_axis = range_axis(*chart.x_range, whole=True)
    height = (HEIGHT - TOP - BOTTOM) / max(rows, 1)
    width = (WIDTH - LEFT - RIGHT) / max(columns, 1)
    gap = 1.0 if height > 5 else 0.0
    parts: list[str] = []
    for number, row in enumerate(chart.cells):
        y = TOP + number * height
        parts.append(
            f'<rect class="empty" x="{LEFT}" y="{y:.2f}" width="{WIDTH - LEFT - RIGHT}" height="{height - gap:.2f}"/>'
        )
        for start, stop, value in _stretches(row):
            x = LEFT + start * width
            parts.append(
                f'<rect class="c{chart.color}" x="{x:.2f}" y="{y:.2f}" width="{(stop - start) * width:.2f}" '
                f'height="{height - gap:.2f}" fill-opacity="{value:.2f}"/>'
            )
    every = max(1, math.ceil(rows / 10))
    for number in range(0, rows, every):
        y = TOP + (number + 0.5) * height + 3
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y:.1f}">{number}</text>')
    name = '<text class="name" x="0" y="10">denoising step, 0 = most noise</text>'
    return _svg("".join(parts) + name + _x_axis(x_axis, "iteration"), chart.title)


def _stretches(row: Sequence[float | None]) -> list[tuple[int, int, float]]:
    """Return (start, stop, value) for each stretch of equal cells that are not empty."""
    stretches: list[tuple[int, int, float]] = []
    start = 0
    for stop in range(1, len(row) + 1):
        if stop == len(row) or row[stop] != row[start]:
            value = row[start]
            if value is not None:
                stretches.append((start, stop, value))
            start = stop
    return stretches


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a stacked bar."""

    name: str
    value: float
    text: str
    """The value with its unit."""
    color: int


def stacked_bar(parts: Sequence[Part], total: float) -> str:
    """Return a bar of HTML whose full width is `total`; pieces wide enough carry their name."""
    pieces: list[str] = []
    for part in parts:
        share = part.value / total if total > 0 else 0.0
        label = f"<span>{escape(part.name)}</span>" if share >= 0.14 else ""
        pieces.append(
            f'<div class="piece b{part.color}" style="width:{share * 100:.2f}%" '
            f'title="{escape(part.name)}: {escape(part.text)}">{label}</div>'
        )
    return f'<div class="bar">{"".join(pieces)}</div>'
