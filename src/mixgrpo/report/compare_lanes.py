"""The race to the target, and the gap between the two samplers, as lanes."""

import math
from collections.abc import Mapping

from mixgrpo.report.axes import range_axis, value_axis
from mixgrpo.report.compare_results import Gap, MethodResult, Results
from mixgrpo.report.lanes import Bar, Dot, Lane, lanes
from mixgrpo.report.text import NONE, change, value

LONGEST = 2.0
"""Shares of the target method's time above this are cut off, so that one slow method does not press the others flat."""


def race(results: Results, colors: Mapping[str, int]) -> str:
    """Return when each method reached the target, the fastest on top; nothing as long as there is no target."""
    if not math.isfinite(results.target) or not results.is_goal:
        return ""
    methods = sorted((m for m in results.methods if m.reach.seeds), key=lambda m: _rank(m, results))
    ends = [_end(method, results) for method in methods]
    axis = range_axis(0.0, min(LONGEST, max(1.0, *(end * 1.02 for end in ends))))
    rows = [_racer(method, results, colors[method.name]) for method in methods]
    name = results.reference.title
    head = ("time", "calls", "iterations", "seeds")
    return lanes(rows, axis=axis, head=head, label=f"share of {name}'s whole training time", line=1.0)


def _rank(method: MethodResult, results: Results) -> tuple[float, float]:
    share, final = method.reach.ratio("seconds"), method.finals[results.comparison.decisive].mean
    return (share if math.isfinite(share) else math.inf, -final)


def _whole(method: MethodResult, results: Results) -> float:
    """Return the time of a method's whole run as a share of the target method's."""
    reference = results.reference.total["seconds"].mean
    return method.total["seconds"].mean / reference if reference > 0 else math.nan


def _end(method: MethodResult, results: Results) -> float:
    share = method.reach.ratio("seconds")
    return share if math.isfinite(share) else max(_whole(method, results), 0.0)


def _racer(method: MethodResult, results: Results, color: int) -> Lane:
    reach = method.reach
    marks: list[Bar | Dot] = []
    share = reach.ratio("seconds")
    if math.isfinite(share):
        marks.append(Bar(start=0.0, stop=share))
    elif math.isfinite(whole := _whole(method, results)):
        marks.append(Bar(start=0.0, stop=whole, style="open"))
    marks += [
        Dot(place=seed.ratio["seconds"], words=f"seed {seed.seed}: {seed.ratio['seconds']:.2f}")
        for seed in reach.seeds
        if seed.ratio is not None and math.isfinite(seed.ratio["seconds"])
    ]
    reached = f"{reach.reached} of {len(reach.seeds)}"
    ratios = [reach.ratio(axis) for axis in ("seconds", "passes", "iterations")]
    cells = [f"{ratio:.2f}" if math.isfinite(ratio) else NONE for ratio in ratios]
    if math.isinf(share):
        cells = ["not reached", "", ""]
    return Lane(key=method.name, title=method.title, color=color, marks=marks, cells=[*cells, reached])


def gap_lanes(results: Results, colors: Mapping[str, int]) -> str:
    """Return the decisive figure by ODE sampling and by the training sampler, with standard errors."""
    decisive = results.comparison.decisive
    methods = [method for method in results.methods if decisive in method.gap_after]
    if not methods:
        return ""
    gaps = {method.name: method.gap_after[decisive] for method in methods}
    sides = [side for gap in gaps.values() for side in _sides(gap)]
    axis = value_axis([end for mean, error in sides for end in (mean - error, mean + error)])
    rows: list[Lane] = []
    for method in methods:
        gap = gaps[method.name]
        ends = sorted((gap.ode.mean, gap.training.mean))
        marks: list[Bar | Dot] = [
            Bar(start=mean - error, stop=mean + error, style="error") for mean, error in _sides(gap) if error
        ]
        marks += [
            Bar(start=ends[0], stop=ends[1]),
            Dot(place=gap.training.mean, style="hollow", words=f"training sampler {value(gap.training.mean)}"),
            Dot(place=gap.ode.mean, words=f"ODE {value(gap.ode.mean)}"),
        ]
        cells = [value(gap.training.mean), value(gap.ode.mean), change(gap.gap.mean)]
        rows.append(Lane(key=method.name, title=method.title, color=colors[method.name], marks=marks, cells=cells))
    head = ("training sampler", "ODE", "gap")
    return lanes(rows, axis=axis, head=head, label=f"held-out {decisive}: hollow training sampler, full ODE")


def _sides(gap: Gap) -> list[tuple[float, float]]:
    """Return both means with their standard errors, 0 where unknown."""
    sides = [(gap.ode.mean, gap.ode_error), (gap.training.mean, gap.training_error)]
    return [(mean, error if math.isfinite(error) else 0.0) for mean, error in sides]
