"""The curves of a comparison: every held-out figure of every method against time, calls and iterations."""

import math
from dataclasses import replace
from html import escape
from typing import NamedTuple

from mixgrpo.report.charts import COLORS, LETTER_WIDTH, PANEL, Chart, Frame, Series, line_chart
from mixgrpo.report.compare_results import MethodResult, Results
from mixgrpo.report.comparison import Axis, HeldOut
from mixgrpo.report.curves import figure

WIDE = Frame(width=1008, height=430, top=22, bottom=36)
"""The drawing of the decisive figure, as wide as the page."""

MEDIUM = Frame(width=484, height=250)
"""The other figures, two beside each other."""


MANY = 14
"""With more methods than this the legend is set smaller."""


class Scale(NamedTuple):
    """One of the horizontal axes."""

    axis: Axis
    css: str
    label: str
    unit: float


def colors_of(results: Results) -> dict[str, int]:
    """Return each method's colour: ink for the target method, and the others in turn."""
    target = results.reference.name
    others = [method.name for method in results.methods if method.name != target]
    return {target: COLORS} | {name: number % (COLORS - 1) + 1 for number, name in enumerate(others)}


def dashed(results: Results) -> set[str]:
    """Return the methods whose colour is taken by an earlier one."""
    others = [method.name for method in results.methods if method.name != results.reference.name]
    return {name for number, name in enumerate(others) if number // (COLORS - 1) % 2}


def scales(results: Results) -> tuple[Scale, Scale, Scale]:
    """Return the three horizontal axes in units that suit their lengths."""
    seconds = _longest(results, "seconds")
    unit, name = (3600.0, "hours") if seconds > 3 * 3600 else (60.0, "minutes") if seconds > 120 else (1.0, "seconds")
    return (
        Scale("seconds", "by-time", f"training time, {name}", unit),
        Scale("passes", "by-passes", "forward passes of the model, thousands", 1000.0),
        Scale("iterations", "by-iteration", "iterations", 1.0),
    )


def _longest(results: Results, axis: Axis) -> float:
    return max((point.place[axis] for method in results.methods for point in method.curve), default=1.0)


def axis_toggle() -> str:
    """Return the buttons that choose the horizontal axis of all curves."""
    names = (("clock-time", "training time"), ("clock-passes", "model calls"), ("clock-iteration", "iterations"))
    labels = "".join(
        f'<label><input type="radio" name="clock" id="{name}"{"" if number else " checked"}><span>{words}</span>'
        "</label>"
        for number, (name, words) in enumerate(names)
    )
    return f'<fieldset class="toggle"><legend>Against</legend>{labels}</fieldset>'


def chips(results: Results) -> str:
    """Return the legend of all curves; with the page's script each name shows, hides and lights up its curves."""
    colors, dashes = colors_of(results), dashed(results)
    buttons = "".join(
        f'<button type="button" class="chip k{colors[m.name]}" data-key="{escape(m.name)}" aria-pressed="true">'
        f'<i class="key{" dashed" if m.name in dashes else ""}"></i>{escape(m.title)}</button>'
        for m in results.methods
        if m.curve
    )
    both = (
        '<button type="button" class="all script">all</button><button type="button" class="none script">none</button>'
    )
    css = "chips many" if len(results.methods) > MANY else "chips"
    return f'<div class="{css}">{buttons}{both if len(results.methods) > 2 else ""}</div>'


def curve_panels(results: Results) -> str:
    """Return the decisive figure large, then a panel for every other figure."""
    decisive, *others = results.comparison.figures
    wide = "".join(
        f'<div class="{scale.css}"><div class="wide">{line_chart(_named(results, decisive, scale))}</div>'
        f'<div class="narrow">{line_chart(_chart(results, decisive, scale, PANEL))}</div></div>'
        for scale in scales(results)
    )
    first = figure(f"held-out {decisive.name}", escape(decisive.words), wide)
    rest = "".join(_panel(results, held_out) for held_out in others)
    return f'<div class="hero">{first}</div><div class="panels">{rest}</div>'


def _panel(results: Results, held_out: HeldOut) -> str:
    drawings = "".join(
        f'<div class="{scale.css}">{line_chart(_chart(results, held_out, scale, MEDIUM))}</div>'
        for scale in scales(results)
    )
    words = f"<b>{escape(held_out.words)}</b>" if held_out.role == "judge" else escape(held_out.words)
    return figure(f"held-out {held_out.name}", words, drawings)


def _chart(results: Results, held_out: HeldOut, scale: Scale, frame: Frame) -> Chart:
    colors, dashes = colors_of(results), dashed(results)
    times = 100.0 if held_out.is_share else 1.0
    series = [
        _series(method, held_out.name, scale, times, color=colors[method.name], dash=method.name in dashes)
        for method in results.methods
        if method.curve
    ]
    levels: dict[str, float] = {}
    if held_out.role == "decisive" and math.isfinite(results.target):
        levels[f"{results.reference.title}'s final"] = results.target * times
    return Chart(
        title=f"held-out {held_out.name}",
        x_label=scale.label,
        y_label="% of prompts" if held_out.is_share else "mean score",
        # The target method goes on top: all others are seen against it.
        series=sorted(series, key=lambda one: one.key == results.reference.name),
        x_range=(0.0, _longest(results, scale.axis) / scale.unit),
        whole_x=scale.axis == "iterations",
        levels=levels,
        frame=frame,
    )


def _named(results: Results, held_out: HeldOut, scale: Scale) -> Chart:
    """Return the wide chart, with the methods' names at the ends of their curves."""
    chart = _chart(results, held_out, scale, WIDE)
    longest = max(len(name) for name in [*(one.name for one in chart.series), *(chart.levels or {})])
    return replace(chart, frame=replace(WIDE, right=min(220, round(longest * LETTER_WIDTH) + 20)), end_labels=True)


def _series(method: MethodResult, name: str, scale: Scale, times: float, *, color: int, dash: bool) -> Series:
    places = [point.place[scale.axis] / scale.unit for point in method.curve]
    spreads = [point.figures[name] for point in method.curve]
    return Series(
        name=method.title,
        key=method.name,
        points=[(x, one.mean * times) for x, one in zip(places, spreads, strict=True)],
        band=[(one.low * times, one.high * times) for one in spreads],
        color=color,
        dashed=dash,
        style="marked",
    )
