"""Charts as inline SVG: curves, heat-maps and stacked bars. Colours are classes of the page's style sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from mixgrpo.report.axes import Axis, range_axis, thin, value_axis

MAX_POINTS = 400
"""Points of a curve that are drawn; a longer curve keeps its lows and highs."""

COLORS = 12
"""How many colours the style sheet has."""

LABEL_HEIGHT, LETTER_WIDTH = 14.0, 7.0
"""Room that a label of a curve takes, in units of the drawing."""

Style = Literal["line", "faint", "marked", "dots", "bars"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A drawing area in units of about a pixel, so that text keeps its size, and the margins within it."""

    width: int = 460
    height: int = 236
    left: int = 46
    right: int = 12
    top: int = 20
    bottom: int = 34

    @property
    def stop(self) -> int:
        """Right edge of the plot."""
        return self.width - self.right

    @property
    def floor(self) -> int:
        """Lower edge of the plot."""
        return self.height - self.bottom


PANEL = Frame()
"""As wide as a panel of the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A frame with its axes: where a value is drawn."""

    frame: Frame
    x_axis: Axis
    y_axis: Axis

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.x_axis.place(value, self.frame.left, self.frame.stop)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        return self.y_axis.place(value, self.frame.floor, self.frame.top)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One set of points of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    """Number of a colour of the style sheet, 1 to COLORS."""
    style: Style = "line"
    errors: Sequence[float] = ()
    """Half-lengths of error bars, one per point."""
    band: Sequence[tuple[float, float]] = ()
    """Lowest and highest value at each point, shaded."""
    key: str = ""
    """What the page's script shows, hides and lights up together; empty: it leaves the series alone."""
    dashed: bool = False
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
    frame: Frame = PANEL
    end_labels: bool = False
    """Write the name of every series at its end; the frame needs a wide right margin."""


def line_chart(chart: Chart) -> str:
    """Return a chart of curves as an SVG element."""
    plot = _plot(chart)
    parts = [_axes(plot, chart.x_label, chart.y_label)]
    parts += [_level("" if chart.end_labels else name, y, plot) for name, y in (chart.levels or {}).items()]
    # Bars and faint lines go below, whatever the order of the legend.
    for series in sorted(chart.series, key=lambda s: ("bars", "faint", "line", "marked", "dots").index(s.style)):
        parts.append(_grouped(_band(series, plot) + _draw(series, plot), series))
    if chart.end_labels:
        parts += _end_labels(chart, plot)
    if chart.ring is not None:
        parts.append(_ring(chart.ring, plot))
    parts.append(f'<line class="cursor" y1="{plot.frame.top}" y2="{plot.frame.floor}"/>')
    name = "curves" if any(series.key for series in chart.series) else "hover"
    return _svg("".join(parts), chart.title, plot.frame, f' data-{name}="{escape(_hover_data(chart, plot))}"')


def _plot(chart: Chart) -> Plot:
    values = [y for series in chart.series for _, y in series.points if math.isfinite(y)]
    for series in chart.series:
        for (_, y), error in zip(series.points, series.errors, strict=False):
            values += [y - error, y + error]
        values += [end for ends in series.band for end in ends]
    values += (chart.levels or {}).values()
    return Plot(
        frame=chart.frame,
        x_axis=range_axis(*chart.x_range, whole=chart.whole_x),
        y_axis=value_axis(values, from_zero=chart.from_zero, whole=chart.whole_y, count=chart.frame.height // 45),
    )


def _svg(content: str, title: str, frame: Frame, data: str = "") -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}"{data}>'
        f"{content}</svg>"
    )


def _hover_data(chart: Chart, plot: Plot) -> str:
    series: list[dict[str, Any]] = []
    for one in chart.series:
        shown: dict[str, Any] = {"name": one.name, "color": one.color}
        if one.key:
            shown |= {"key": one.key, "dashed": one.dashed}
        ends = one.band if len(one.band) == len(one.points) <= MAX_POINTS else ()
        if ends:
            points = [(*point, *end) for point, end in zip(one.points, ends, strict=True)]
        else:
            points = thin(one.points, MAX_POINTS)
        shown["points"] = [_rounded(p) for p in points if all(map(math.isfinite, p))]
        series.append(shown)
    frame = plot.frame
    place = {"x": [plot.x_axis.low, plot.x_axis.high], "left": frame.left, "right": frame.stop, "width": frame.width}
    if any(one.key for one in chart.series):
        place |= {"y": [plot.y_axis.low, plot.y_axis.high], "top": frame.top, "floor": frame.floor}
    return json.dumps({**place, "label": chart.x_label, "series": series}, separators=(",", ":"))


def _is_real(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def _axes(plot: Plot, x_label: str, y_label: str) -> str:
    frame, axis = plot.frame, plot.y_axis
    parts: list[str] = []
    for tick in axis.ticks:
        y = plot.y(tick)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.stop}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 6}" y="{y + 3.5:.1f}">{axis.label(tick)}</text>')
    return (
        "".join(parts)
        + _x_axis(plot.x_axis, x_label, frame)
        + f'<text class="name" x="0" y="10">{escape(y_label)}{axis.unit}</text>'
    )


def _x_axis(axis: Axis, label: str, frame: Frame) -> str:
    bottom = frame.floor
    parts = [f'<line class="axis" x1="{frame.left}" x2="{frame.stop}" y1="{bottom}" y2="{bottom}"/>']
    for tick in axis.ticks:
        x = axis.place(tick, frame.left, frame.stop)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{bottom + 15}">{axis.label(tick)}</text>')
    parts.append(f'<text class="name end" x="{frame.stop}" y="{frame.height - 3}">{escape(label)}{axis.unit}</text>')
    return "".join(parts)


def _level(name: str, value: float, plot: Plot) -> str:
    y, frame = plot.y(value), plot.frame
    return (
        f'<line class="level" x1="{frame.left}" x2="{frame.stop}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="note end" x="{frame.stop}" y="{y - 4:.1f}">{escape(name)}</text>'
    )


def _grouped(content: str, series: Series) -> str:
    return f'<g class="series" data-key="{escape(series.key)}">{content}</g>' if series.key else content


def _band(series: Series, plot: Plot) -> str:
    points = [
        (plot.x(x), plot.y(low), plot.y(high))
        for (x, _), (low, high) in zip(series.points, series.band, strict=False)
        if math.isfinite(low) and math.isfinite(high)
    ]
    if len(points) < 2 or all(low == high for _, low, high in points):
        return ""
    there = [(x, high) for x, _, high in points]
    back = [(x, low) for x, low, _ in reversed(points)]
    return f'<path class="band c{series.color}" d="{_line([*there, *back])}Z"/>'


def _draw(series: Series, plot: Plot) -> str:
    points = thin(series.points, MAX_POINTS)
    places = [(plot.x(x), plot.y(y)) if _is_real((x, y)) else None for x, y in points]
    real = [place for place in places if place is not None]
    if series.style == "bars":
        return _bars(series, real, plot)
    parts: list[str] = []
    if series.style != "dots":
        css = f"{series.style} dashed" if series.dashed else series.style
        parts.append(f'<path class="{css} c{series.color}" d="{_line(places)}"/>')
    errors = dict(zip((x for x, _ in series.points), series.errors, strict=False))
    for x, y in points:
        error = errors.get(x, math.nan)
        if _is_real((y, error)):
            place = f"M{plot.x(x):.1f} {plot.y(y - error):.1f}V{plot.y(y + error):.1f}"
            parts.append(f'<path class="error c{series.color}" d="{place}"/>')
    # A line of one point is invisible, so it gets its dot too.
    if series.style in ("marked", "dots") or len(real) == 1:
        parts += [f'<circle class="c{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="2.8"/>' for x, y in real]
    return "".join(parts)


def _bars(series: Series, places: Sequence[tuple[float, float]], plot: Plot) -> str:
    axis, frame = plot.x_axis, plot.frame
    width = max(1.5, 0.7 * (frame.stop - frame.left) / (axis.high - axis.low + 1))
    zero = plot.y(0.0)
    path = "".join(f"M{x:.1f} {zero:.1f}V{y:.1f}" for x, y in places if y < zero)
    return f'<path class="bars c{series.color}" style="stroke-width:{min(width, 14):.1f}" d="{path}"/>'


def _end_labels(chart: Chart, plot: Plot) -> list[str]:
    """Write the names of curves and levels in the right margin, each as near as can be to the height where it ends."""
    frame = plot.frame
    ends: list[tuple[float, float, str, Series | None]] = [
        (float(frame.stop), plot.y(y), name, None) for name, y in (chart.levels or {}).items()
    ]
    for one in chart.series:
        if points := [point for point in one.points if _is_real(point)]:
            ends.append((plot.x(points[-1][0]), plot.y(points[-1][1]), one.name, one))
    ends.sort(key=lambda end: end[1])
    labels: list[str] = []
    for (x, y, name, one), height in zip(ends, _spaced([end[1] for end in ends], frame), strict=True):
        css = f"t{one.color}" if one is not None else "level-name"
        content = (
            f'<path class="leader {css}" d="M{x + 4:.1f} {y:.1f}H{frame.stop + 2}L{frame.stop + 12} {height:.1f}"/>'
            f'<text class="label {css}" x="{frame.stop + 15}" y="{height + 3.8:.1f}">{escape(name)}</text>'
        )
        labels.append(_grouped(content, one) if one is not None else content)
    return labels


def _spaced(heights: Sequence[float], frame: Frame) -> list[float]:
    """Return heights at least a label apart and within the frame, moved as little as that takes; `heights` ascend."""
    # Labels that touch form a block, centred on the mean of what its members wanted.
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _top(blocks[-1], frame) < _top(blocks[-2], frame) + len(blocks[-2]) * LABEL_HEIGHT:
            last = blocks.pop()
            blocks[-1] += last
    return [_top(block, frame) + number * LABEL_HEIGHT for block in blocks for number in range(len(block))]


def _top(block: Sequence[float], frame: Frame) -> float:
    length = (len(block) - 1) * LABEL_HEIGHT
    wanted = math.fsum(block) / len(block) - length / 2
    return max(frame.top - 8.0, min(wanted, frame.floor + 8.0 - length))


def _line(places: Sequence[tuple[float, float] | None]) -> str:
    commands, pen = "", "M"
    for place in places:
        if place is not None:
            commands += f"{pen}{place[0]:.1f} {place[1]:.1f}"
        pen = "M" if place is None else "L"
    return commands


def _ring(ring: tuple[float, float, str], plot: Plot) -> str:
    x, y = plot.x(ring[0]), plot.y(ring[1])
    side = "end" if x > plot.frame.width / 2 else ""
    above = y - 11 if y > plot.frame.top + 16 else y + 18
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
    x_axis, frame = range_axis(*chart.x_range, whole=True), PANEL
    height = (frame.floor - frame.top) / max(rows, 1)
    width = (frame.stop - frame.left) / max(columns, 1)
    gap = 1.0 if height > 5 else 0.0
    parts: list[str] = []
    for number, row in enumerate(chart.cells):
        y = frame.top + number * height
        parts.append(
            f'<rect class="empty" x="{frame.left}" y="{y:.2f}" width="{frame.stop - frame.left}" '
            f'height="{height - gap:.2f}"/>'
        )
        for start, stop, value in _stretches(row):
            x = frame.left + start * width
            parts.append(
                f'<rect class="c{chart.color}" x="{x:.2f}" y="{y:.2f}" width="{(stop - start) * width:.2f}" '
                f'height="{height - gap:.2f}" fill-opacity="{value:.2f}"/>'
            )
    every = max(1, math.ceil(rows / 10))
    for number in range(0, rows, every):
        y = frame.top + (number + 0.5) * height + 3
        parts.append(f'<text class="tick end" x="{frame.left - 6}" y="{y:.1f}">{number}</text>')
    name = '<text class="name" x="0" y="10">denoising step, 0 = most noise</text>'
    return _svg("".join(parts) + name + _x_axis(x_axis, "iteration", frame), chart.title, frame)


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
