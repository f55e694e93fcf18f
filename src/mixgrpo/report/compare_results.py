"""What a comparison comes to: every number of its tables, as frozen dataclasses and as JSON."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import Any, NamedTuple

from mixgrpo.report.comparison import AXES, Axis, Comparison, Contender, Course, Mark, forward_passes
from mixgrpo.report.samplers import is_one_sampler
from mixgrpo.report.summary import mean_of


class Spread(NamedTuple):
    """A figure over the seeds."""

    mean: float
    low: float
    high: float
    deviation: float
    """Sample standard deviation; NaN for fewer than two seeds."""
    runs: int

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to take a mean of."""
        return self.runs == 0


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of those values that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    deviation = stdev(finite) if len(finite) > 1 else math.nan
    return Spread(mean_of(finite), min(finite), max(finite), deviation, len(finite))


def crossing(heights: Sequence[float], target: float) -> float | None:
    """Return where a curve first reaches `target`: 0 is its first point, 2.5 halfway between its third and its fourth.

    Straight lines join the points. A point that is exactly at the target has reached it. None: never reached.
    """
    for number, height in enumerate(heights):
        if height >= target:
            if number == 0:
                return 0.0
            before = heights[number - 1]
            return number - 1 + (target - before) / (height - before)
    return None


def between(places: Sequence[float], position: float) -> float:
    """Return the value at a position that `crossing` returned."""
    number = min(int(position), len(places) - 1)
    rest = position - number
    return places[number] if rest == 0 else places[number] + rest * (places[number + 1] - places[number])


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedReach:
    """When one run reached the target."""

    seed: int
    place: Mapping[Axis, float] | None
    """Seconds, forward passes and iterations; None if it never did."""
    ratio: Mapping[Axis, float] | None
    """Of the whole of the target method's run with the same seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """When a method reached the target, over its runs that have ended."""

    seeds: tuple[SeedReach, ...]

    @property
    def reached(self) -> int:
        """How many runs reached it."""
        return sum(seed.place is not None for seed in self.seeds)

    def place(self, axis: Axis) -> float:
        """Return the median over the runs; a run that never reached it counts as later than all others."""
        return self._median([math.inf if seed.place is None else seed.place[axis] for seed in self.seeds])

    def ratio(self, axis: Axis) -> float:
        """Return the median share of the target method's own total; infinite if half of the runs never reached it."""
        return self._median([math.inf if seed.ratio is None else seed.ratio[axis] for seed in self.seeds])

    @staticmethod
    def _median(values: Sequence[float]) -> float:
        return math.nan if not values or any(map(math.isnan, values)) else median(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """How much better images score without noise (ODE) than as training draws them, at an evaluation."""

    ode: Spread
    training: Spread
    gap: Spread
    """ODE minus training sampler, run by run."""
    ode_error: float
    training_error: float
    """Largest standard error of one run's evaluation; NaN where unknown."""
    error: float
    """Standard error of one run's gap, the two evaluations taken for independent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A method at one evaluation, over its seeds."""

    place: Mapping[Axis, float]
    """Means over the seeds."""
    figures: Mapping[str, Spread]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What an iteration of a method took, over all its runs."""

    calls: Mapping[str, float]
    """Mean model calls per sample: sampling, old, reference, update."""
    passes: float
    """The same in forward passes."""
    seconds: float
    """Median over iterations and seeds."""
    seconds_ratio: float
    """Of the target method's."""
    peak_memory: float
    """Bytes; NaN where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """All there is to say about a method."""

    name: str
    title: str
    finished: int
    stopped: int
    """Runs that stopped by themselves, as a collapsed reward makes them."""
    running: int
    iterations: tuple[int, ...]
    """Iterations done, by run."""
    provisional: bool
    """Whether the figures are of runs under way, because none has ended."""
    cost: Cost | None
    total: Mapping[Axis, Spread]
    """What a whole run took."""
    finals: Mapping[str, Spread]
    """Every held-out figure at the last evaluation."""
    gap_before: Mapping[str, Gap]
    """Empty where the window moved in some run: the training sampler was another one then, and shows no change."""
    gap_after: Mapping[str, Gap]
    sampler_windows: tuple[tuple[int, int], ...]
    """Stochastic steps [start, stop) of the training sampler after training, each once; (0, 0) is none at all."""
    reach: Reach
    curve: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """The whole comparison."""

    comparison: Comparison
    before: Mapping[str, Spread]
    """The untouched model."""
    errors: Mapping[str, float]
    """Largest standard error of an evaluation over the prompts, by figure; NaN where unknown."""
    target: float
    """The target method's mean final value of the decisive figure; NaN as long as it has no finished run."""
    is_goal: bool
    """Whether the target is above the untouched model, so that there is something to reach."""
    methods: tuple[MethodResult, ...]

    @property
    def reference(self) -> MethodResult:
        """The target method."""
        return next(method for method in self.methods if method.name == self.comparison.terms.target)

    @property
    def is_complete(self) -> bool:
        """Whether every run has ended."""
        seeds = self.comparison.terms.seeds
        return all(method.finished + method.stopped == seeds for method in self.methods)


def make_results(comparison: Comparison) -> Results:
    """Work out everything."""
    by_name = {contender.entrant.name: contender for contender in comparison.contenders}
    reference = by_name[comparison.terms.target]
    marks = [mark for course in comparison.courses for mark in course.marks]
    starts = [mark for mark in marks if mark.iterations == 0]
    names = [figure.name for figure in comparison.figures]
    before = {name: spread(mark.figures.get(name, math.nan) for mark in starts) for name in names}
    target = _target(comparison, reference)
    # What the untouched model has already is nothing to reach.
    is_goal = not (names and target <= before[comparison.decisive].mean)
    goal = target if is_goal else math.nan
    return Results(
        comparison=comparison,
        before=before,
        errors={name: _largest(mark.errors.get(name, math.nan) for mark in marks) for name in names},
        target=target,
        is_goal=is_goal,
        methods=tuple(_method(comparison, contender, reference, goal) for contender in comparison.contenders),
    )


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def _target(comparison: Comparison, reference: Contender) -> float:
    finals = [course.marks[-1].figures.get(comparison.decisive, math.nan) for course in reference.ended]
    return mean_of(finals)


def _method(comparison: Comparison, contender: Contender, reference: Contender, target: float) -> MethodResult:
    counted = contender.counted
    names = [figure.name for figure in comparison.figures]
    lasts, firsts = [c.marks[-1] for c in counted], [c.marks[0] for c in counted]
    states = [course.state for course in contender.courses]
    return MethodResult(
        name=contender.entrant.name,
        title=contender.entrant.title,
        finished=states.count("finished"),
        stopped=states.count("stopped"),
        running=states.count("running"),
        iterations=tuple(course.done for course in contender.courses),
        provisional=bool(counted) and not contender.ended,
        cost=_cost(contender, reference),
        total={axis: spread(mark.at(axis) for mark in lasts) for axis in AXES},
        finals={name: spread(mark.figures.get(name, math.nan) for mark in lasts) for name in names},
        gap_before=_gaps(firsts, names) if _keeps_sampler(counted) else {},
        gap_after=_gaps(lasts, names),
        sampler_windows=_sampler_windows(lasts),
        reach=_reach(contender, reference, comparison.decisive, target),
        curve=_curve(counted, names),
    )


def _cost(contender: Contender, reference: Contender) -> Cost | None:
    rows = [row for course in contender.courses for row in course.run.train]
    if not rows:
        return None
    seconds = median(row.seconds for row in rows)
    others = [row.seconds for course in reference.courses for row in course.run.train]
    names = ("sampling", "old", "reference", "update")
    counted = [row for row in rows if row.calls]
    return Cost(
        calls={name: mean_of([row.calls.get(name, 0.0) for row in counted]) for name in names},
        passes=mean_of([forward_passes(row) for row in rows]),
        seconds=seconds,
        seconds_ratio=seconds / median(others) if others and median(others) > 0 else math.nan,
        peak_memory=_largest(row.figures.get("peak_memory", math.nan) for row in rows),
    )


def _keeps_sampler(courses: Sequence[Course]) -> bool:
    return all(is_one_sampler((c.marks[0].sampler_window, c.marks[-1].sampler_window)) for c in courses)


def _sampler_windows(marks: Sequence[Mark]) -> tuple[tuple[int, int], ...]:
    windows = (mark.sampler_window for mark in marks if mark.training)
    return tuple(sorted({(window.start, window.stop) for window in windows if window is not None}))


def _gaps(marks: Sequence[Mark], names: Sequence[str]) -> dict[str, Gap]:
    return {name: _gap(marks, name) for name in names if any(name in mark.training for mark in marks)}


def _gap(marks: Sequence[Mark], name: str) -> Gap:
    pairs = [(mark.figures.get(name, math.nan), mark.training.get(name, math.nan)) for mark in marks]
    ode_error = _largest(mark.errors.get(name, math.nan) for mark in marks)
    training_error = _largest(mark.training_errors.get(name, math.nan) for mark in marks)
    return Gap(
        ode=spread(ode for ode, _ in pairs),
        training=spread(training for _, training in pairs),
        gap=spread(ode - training for ode, training in pairs),
        ode_error=ode_error,
        training_error=training_error,
        error=math.hypot(ode_error, training_error),
    )


def _reach(contender: Contender, reference: Contender, decisive: str, target: float) -> Reach:
    if not math.isfinite(target):
        return Reach(seeds=())
    wholes = {course.seed: course.marks[-1] for course in reference.ended}
    seeds: list[SeedReach] = []
    for course in contender.ended:
        place = _first_place(course, decisive, target)
        ratio: dict[Axis, float] | None = None
        if place is not None:
            ratio = {axis: _share(place[axis], _whole(wholes, course.seed, axis)) for axis in AXES}
        seeds.append(SeedReach(seed=course.seed, place=place, ratio=ratio))
    return Reach(seeds=tuple(seeds))


def _first_place(course: Course, decisive: str, target: float) -> dict[Axis, float] | None:
    marks = [mark for mark in course.marks if math.isfinite(mark.figures.get(decisive, math.nan))]
    position = crossing([mark.figures[decisive] for mark in marks], target)
    if position is None:
        return None
    return {axis: between([mark.at(axis) for mark in marks], position) for axis in AXES}


def _whole(wholes: Mapping[int, Mark], seed: int, axis: Axis) -> float:
    """Return what the target method's run with this seed took, or the mean of its runs where it has none."""
    return wholes[seed].at(axis) if seed in wholes else mean_of([mark.at(axis) for mark in wholes.values()])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _curve(courses: Sequence[Course], names: Sequence[str]) -> tuple[Point, ...]:
    """Return the evaluations that all runs have: with fewer runs at its end, a mean would jump."""
    if not courses:
        return ()
    tables = [{mark.iterations: mark for mark in course.marks} for course in courses]
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    points: list[Point] = []
    for iteration in common:
        marks = [table[iteration] for table in tables]
        points.append(
            Point(
                place={axis: mean_of([mark.at(axis) for mark in marks]) for axis in AXES},
                figures={name: spread(mark.figures.get(name, math.nan) for mark in marks) for name in names},
            )
        )
    return tuple(points)


def as_json(results: Results) -> dict[str, Any]:
    """Return every number as JSON takes it: null where there is none, and where a target was never reached."""
    comparison = results.comparison
    return {
        "model": comparison.terms.model,
        "seeds": comparison.terms.seeds,
        "complete": results.is_complete,
        "decisive": comparison.decisive,
        "figures": {figure.name: {"role": figure.role, "what": figure.words} for figure in comparison.figures},
        "held_out_prompts": comparison.num_prompts,
        "before": _plain(results.before),
        "standard_errors": _plain(results.errors),
        "target": {"method": comparison.terms.target, "value": _plain(results.target), "is_goal": results.is_goal},
        "methods": [_method_json(method) for method in results.methods],
        "remarks": list(comparison.remarks),
    }


def _method_json(method: MethodResult) -> dict[str, Any]:
    reach = method.reach
    medians = {
        "reached": reach.reached,
        "of": len(reach.seeds),
        "median": {axis: reach.place(axis) for axis in AXES},
        "median_ratio": {axis: reach.ratio(axis) for axis in AXES},
        "seeds": reach.seeds,
    }
    return _plain(method) | {"reach": _plain(medians)}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Spread):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
