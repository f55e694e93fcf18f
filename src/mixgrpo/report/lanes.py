"""Lanes: a row for each method with marks on a common axis and numbers beside them, in HTML that fits any width."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from mixgrpo.report.axes import Axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A stretch of a lane."""

    start: float
    stop: float
    style: Literal["bar", "open", "error"] = "bar"
    """Full; hatched, for what has not got there; or a thin error bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A point of a lane."""

    place: float
    style: Literal["full", "hollow"] = "full"
    words: str = ""
    """What a pointer over it is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """A row."""

    key: str
    title: str
    color: int
    marks: Sequence[Bar | Dot]
    cells: Sequence[str]
    """Numbers beside the lane, as many as the head names."""


def lanes(rows: Sequence[Lane], *, axis: Axis, head: Sequence[str], label: str, line: float | None = None) -> str:
    """Return the rows over `axis`, with a vertical line at `line`."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(_row(row, axis, line) for row in rows)
    ticks = "".join(f'<span style="left:{_at(t, axis)}">{escape(axis.label(t))}</span>' for t in axis.ticks)
    return (
        f'<table class="lanes"><thead><tr><th></th><th class="lane">{escape(label)}</th>{names}</tr></thead>'
        f'<tbody>{body}</tbody><tfoot><tr><td></td><td class="lane"><div class="ticks">{ticks}</div></td>'
        f'<td colspan="{len(head)}"></td></tr></tfoot></table>'
    )


def _row(row: Lane, axis: Axis, line: float | None) -> str:
    grid = "".join(f'<i class="grid" style="left:{_at(tick, axis)}"></i>' for tick in axis.ticks)
    mark = f'<i class="goal" style="left:{_at(line, axis)}"></i>' if line is not None else ""
    marks = "".join(_mark(mark, axis) for mark in row.marks)
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
    return (
        f'<tr class="k{row.color}" data-key="{escape(row.key)}"><th><i class="swatch"></i>{escape(row.title)}</th>'
        f'<td class="lane"><div class="track">{grid}{marks}{mark}</div></td>{cells}</tr>'
    )


def _mark(mark: Bar | Dot, axis: Axis) -> str:
    if isinstance(mark, Bar):
        # A stretch beyond the axis ends at its end; the numbers beside the lane say how far it goes.
        start, stop = (min(max(end, axis.low), axis.high) for end in (mark.start, mark.stop))
        width = (stop - start) / (axis.high - axis.low) * 100
        return f'<i class="{mark.style}" style="left:{_at(start, axis)};width:{width:.2f}%"></i>'
    place = min(max(mark.place, axis.low), axis.high)
    title = f' title="{escape(mark.words)}"' if mark.words else ""
    return f'<b class="{mark.style}" style="left:{_at(place, axis)}"{title}></b>'


def _at(value: float, axis: Axis) -> str:
    return f"{axis.place(value, 0.0, 100.0):.2f}%"
