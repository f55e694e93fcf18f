"""Axes of a chart: round tick values, their labels, and the map from values to places."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixgrpo.report.text import MINUS, superscript


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A linear axis from `low` to `high` with tick values and labels."""

    low: float
    high: float
    ticks: tuple[float, ...]
    exponent: int
    """The labels are in units of ten to this power."""

    def place(self, value: float, start: float, stop: float) -> float:
        """Map a value to a place between `start` (at `low`) and `stop` (at `high`)."""
        return start + (value - self.low) / (self.high - self.low) * (stop - start)

    def label(self, tick: float) -> str:
        """Return the text of a tick."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        scale = 10.0**self.exponent
        decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9))
        if abs(step / scale * 10**decimals - 2.5) < 1e-6:
            decimals += 1
        text = f"{tick / scale:,.{decimals}f}"
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)

    @property
    def unit(self) -> str:
        """Return ", in 10⁻⁵", or nothing where the labels are the values."""
        return f", in 10{superscript(self.exponent)}" if self.exponent else ""


def value_axis(values: Iterable[float], *, from_zero: bool = False, whole: bool = False, count: int = 5) -> Axis:
    """Return an axis of round values around `values`, from or to 0 where that is near or `from_zero` says so."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if from_zero or 0 <= low <= 0.25 * high:
        low = min(0.0, low)
    elif 0.25 * low <= high <= 0:
        high = 0.0
    if low == high:
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if low else (0.0, 1.0)
    step = _round_step((high - low) / count)
    step = max(1.0, step) if whole else step
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return _axis(low, high, step)


def range_axis(low: float, high: float, *, count: int = 6, whole: bool = False) -> Axis:
    """Return an axis that ends exactly at `low` and `high`, with round ticks between; `whole` numbers only if asked."""
    high = high if high > low else low + 1.0
    step = _round_step((high - low) / count)
    return _axis(low, high, max(1.0, step) if whole else step)


def _axis(low: float, high: float, step: float) -> Axis:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    size = max(abs(low), abs(high))
    exponent = math.floor(math.log10(size) + 1e-9) if size and (size < 0.01 or size >= 1e5) else 0
    return Axis(low=low, high=high, ticks=ticks, exponent=exponent)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= step * 0.999)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Return the centred moving mean over `width` values, fewer at the ends; what is not finite is left out."""
    half = width // 2
    result: list[float] = []
    for middle in range(len(values)):
        near = [v for v in values[max(0, middle - half) : middle + half + 1] if math.isfinite(v)]
        result.append(math.fsum(near) / len(near) if near else math.nan)
    return result


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """Return at most about `limit` points, the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = [point for point in points[start : start + size] if math.isfinite(point[1])]
        if stretch:
            ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
            kept.extend(sorted(ends))
    return kept
