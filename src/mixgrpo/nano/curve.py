"""Draws the log of the flow stage as one SVG: the loss, and what share of held-out prompts comes out right."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 28, 34


class Curve(NamedTuple):
    """A named line through (step, value) points."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


def read_curve(rows: Sequence[dict[str, float]], key: str, name: str, color: str) -> Curve:
    """Collect the values of one key of the log."""
    return Curve(name, color, [(row["step"], row[key]) for row in rows if key in row])


def write_curves(log: Path, file: Path) -> None:
    """Draw a stage's log: loss on the left (logarithmic), held-out exact match and colours on the right."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    loss = read_curve(rows, "loss", "loss", "#3366cc")
    judged = [
        read_curve(rows, "heldout_exact", "word exact", "#cc3333"),
        read_curve(rows, "heldout_colors_exact", "colours exact", "#22884a"),
    ]
    low = min(value for _, value in loss.points)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0) if tick >= low / 1.5]
    panels = [
        _panel("Flow-matching loss", [loss], ticks, math.log),
        _panel("Held-out prompts, share right", judged, [0.0, 0.25, 0.5, 0.75, 1.0], float),
    ]
    body = "".join(f'<g transform="translate({index * WIDTH} 0)">{panel}</g>' for index, panel in enumerate(panels))
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n',
        encoding="utf-8",
    )


def _panel(title: str, curves: Sequence[Curve], ticks: Sequence[float], scale: Callable[[float], float]) -> str:
    """Draw curves over the steps, the ticks being the vertical axis."""
    end = max(step for curve in curves for step, _ in curve.points)
    low, high = scale(ticks[0]), scale(ticks[-1])

    def x(step: float) -> float:
        return round(_LEFT + step / end * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        place = (scale(min(max(value, ticks[0]), ticks[-1])) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{title}</text>']
    for tick in ticks:
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    for step in (0, end / 2, end):
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - 18}" text-anchor="middle">{step:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for index, curve in enumerate(curves):
        line = " ".join(f"{x(step)},{y(value)}" for step, value in curve.points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{curve.color}" stroke-width="1.6"/>')
        if len(curves) > 1:
            row = HEIGHT - _BOTTOM - 8 - 14 * index
            parts.append(f'<text x="{WIDTH - 20}" y="{row}" text-anchor="end" fill="{curve.color}">{curve.name}</text>')
    return "".join(parts)
