"""Reads a comparison's folder: every run's evaluations, placed on three axes. Files only, no torch.

The axes: iterations; training time, which is the sum of the iterations' own seconds, so that evaluations, saving,
loading and pauses cost nobody anything; and forward passes of the model, as counted while it ran.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixgrpo.config.comparison import Entrant, Terms, read_terms
from mixgrpo.report.cost import FORWARD_AND_BACKWARD
from mixgrpo.report.read import Run, read_run
from mixgrpo.report.rows import TrainRow
from mixgrpo.report.samplers import sampler_window
from mixgrpo.report.summary import estimate, in_order, judges, reward_weights
from mixgrpo.report.text import count, is_share

WEIGHTED_SUM = "weighted sum"
"""Name of the decisive figure where it is no single reward."""

State = Literal["finished", "stopped", "running"]
Axis = Literal["seconds", "passes", "iterations"]
AXES: tuple[Axis, ...] = ("seconds", "passes", "iterations")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One evaluation of a run, and what the run had spent until then."""

    iterations: float
    seconds: float
    passes: float
    """Forward passes of the model; a forward and backward pass counts as three. NaN where they were not counted."""
    figures: Mapping[str, float]
    errors: Mapping[str, float]
    """Standard errors over the prompts; NaN where unknown."""
    training: Mapping[str, float]
    """The figures with the training sampler; empty where it was not evaluated."""
    training_errors: Mapping[str, float]
    sampler_window: range | None
    """Stochastic steps of the training sampler at this evaluation; None where unknown."""

    def at(self, axis: Axis) -> float:
        """Return the place on an axis."""
        return {"seconds": self.seconds, "passes": self.passes, "iterations": self.iterations}[axis]


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """One run of the comparison."""

    method: str
    seed: int
    run: Run
    marks: tuple[Mark, ...]
    """By iteration."""

    @property
    def done(self) -> int:
        """Iterations that were trained."""
        return self.run.train[-1].iteration + 1 if self.run.train else 0

    @property
    def state(self) -> State:
        """Whether the run is at its end."""
        ending = self.run.ending
        if ending is None or ending.reason == "interrupted":
            return "running"
        return "finished" if ending.reason == "finished" else "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A method and its runs so far, by seed."""

    entrant: Entrant
    courses: tuple[Course, ...]

    @property
    def counted(self) -> tuple[Course, ...]:
        """The runs that figures are made of: those that have ended, or, as long as none has, those under way."""
        return self.ended or tuple(course for course in self.courses if course.marks)

    @property
    def ended(self) -> tuple[Course, ...]:
        """The runs that will not go on and were evaluated."""
        return tuple(course for course in self.courses if course.state != "running" and course.marks)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """A figure that is measured on the held-out prompts."""

    name: str
    role: Literal["decisive", "trained", "measured", "judge"]
    """Judge: a reward that no training may use."""
    words: str
    """What it is, in words."""

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return is_share(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison's folder."""

    folder: Path
    terms: Terms
    contenders: tuple[Contender, ...]
    """All methods, in the order of the terms, those without a run yet too."""
    decisive: str
    """The figure that says who wins: the weighted sum of the trained rewards, or the config's eval.best."""
    figures: tuple[HeldOut, ...]
    """The decisive one first, then the others in the order of the config."""
    remarks: tuple[str, ...]

    @property
    def courses(self) -> tuple[Course, ...]:
        """All runs."""
        return tuple(course for contender in self.contenders for course in contender.courses)

    @property
    def num_prompts(self) -> int:
        """Held-out prompts of an evaluation; 0 if unknown."""
        return max((row.num_prompts for course in self.courses for row in course.run.evals), default=0)


def run_folder_of(folder: Path, method: str, seed: int) -> Path:
    """Return where the run of a method with a seed is."""
    return folder / method / f"seed-{seed}"


def read_comparison(folder: Path) -> Comparison:
    """Read the comparison in `folder`; runs that have not begun are left out.

    Raises:
        CheckpointError: if `compare.json` or a run is missing or damaged.
        ConfigError: if a run's `resolved.json` is damaged.
    """
    terms = read_terms(folder)
    runs: dict[tuple[str, int], Run] = {}
    for entrant in terms.methods:
        for seed in range(terms.seeds):
            path = run_folder_of(folder, entrant.name, seed)
            if (path / "metrics.jsonl").is_file():
                runs[entrant.name, seed] = read_run(path)
    first = next(iter(runs.values()), None)
    weights = _decisive_weights(first) if first else {}
    decisive = next(iter(weights)) if list(weights.values()) == [1.0] else WEIGHTED_SUM
    courses = [
        Course(method=method, seed=seed, run=run, marks=_marks(run, decisive, weights))
        for (method, seed), run in runs.items()
    ]
    return Comparison(
        folder=folder,
        terms=terms,
        contenders=tuple(
            Contender(entrant=entrant, courses=tuple(c for c in courses if c.method == entrant.name))
            for entrant in terms.methods
        ),
        decisive=decisive,
        figures=_figures(courses, decisive, weights),
        remarks=tuple(_remarks(courses)),
    )


def forward_passes(row: TrainRow) -> float:
    """Return the forward passes per sample of an iteration, a forward and backward pass counted as three."""
    if not row.calls:
        return math.nan
    calls = math.fsum(row.calls.get(key, 0.0) for key in ("sampling", "old", "reference"))
    return calls + FORWARD_AND_BACKWARD * row.calls.get("update", 0.0)


def samples_per_iteration(run: Run) -> float:
    """Return how many images an iteration draws; NaN where the config does not say."""
    prompts, group = run.setting("prompts_per_iteration"), run.setting("rollout.group_size")
    return float(prompts * group) if isinstance(prompts, int) and isinstance(group, int) else math.nan


def _decisive_weights(run: Run) -> dict[str, float]:
    best = run.setting("eval.best")
    if isinstance(best, str) and best:
        return {best: 1.0}
    unseen = judges(run)
    return {name: w for name, w in reward_weights(run).items() if w > 0 and name not in unseen}


def _marks(run: Run, decisive: str, weights: Mapping[str, float]) -> tuple[Mark, ...]:
    seconds, passes, samples = 0.0, 0.0, samples_per_iteration(run)
    marks: list[Mark] = []
    waiting = list(run.train)
    for row in run.evals:
        while waiting and waiting[0].iteration < row.iteration:
            train = waiting.pop(0)
            seconds += train.seconds
            passes += forward_passes(train) * samples
        errors = {name: estimate(row, name).error for name in row.figures}
        marks.append(
            Mark(
                iterations=float(row.iteration),
                seconds=seconds,
                passes=passes,
                figures=_with_sum(row.figures, decisive, weights),
                errors=_with_sum(errors, decisive, weights),
                training=_with_sum(row.training_figures, decisive, weights) if row.training_figures else {},
                training_errors=_with_sum(row.training_errors, decisive, weights) if row.training_figures else {},
                sampler_window=sampler_window(run, row),
            )
        )
    return tuple(marks)


def _with_sum(figures: Mapping[str, float], decisive: str, weights: Mapping[str, float]) -> dict[str, float]:
    # Of standard errors, the weighted sum is the largest that the error of the weighted sum can be.
    if decisive in figures:
        return dict(figures)
    total = math.fsum(weight * figures.get(name, math.nan) for name, weight in weights.items()) if weights else math.nan
    return {decisive: total, **figures}


def _figures(courses: Sequence[Course], decisive: str, weights: Mapping[str, float]) -> tuple[HeldOut, ...]:
    names = dict.fromkeys(name for course in courses for mark in course.marks for name in mark.figures)
    unseen = set[str]().union(*(judges(course.run) for course in courses))
    order = dict.fromkeys(name for course in courses for name in reward_weights(course.run))
    ordered = in_order((name for name in names if name != decisive), order)
    return tuple(_figure(name, decisive, weights, unseen) for name in ([decisive] if names else []) + ordered)


def _figure(name: str, decisive: str, weights: Mapping[str, float], unseen: set[str]) -> HeldOut:
    reward, _, detail = name.partition("/")
    if name == decisive:
        terms = [f"{weight:g} {each}" if weight != 1 else each for each, weight in weights.items()]
        words = f"{' + '.join(terms)}, what training maximises" if name == WEIGHTED_SUM else "what decides"
        return HeldOut(name=name, role="decisive", words=words)
    if reward in unseen:
        return HeldOut(name=name, role="judge", words="independent judge: no training ever saw it")
    if detail or reward not in weights:
        return HeldOut(name=name, role="measured", words=f"measured beside {reward}" if detail else "not trained on")
    return HeldOut(name=name, role="trained", words=f"trained, weight {weights[reward]:g}")


def _remarks(courses: Sequence[Course]) -> list[str]:
    remarks: list[str] = []
    for course in courses:
        name = f"{course.method}, seed {course.seed}"
        if course.state == "stopped" and course.run.ending is not None:
            remarks.append(
                f"{name}: stopped by itself after {count(course.done, 'iteration')}. {course.run.ending.why} "
                "Its last evaluation counts as its final one."
            )
        if [row.iteration for row in course.run.train] != list(range(course.done)):
            remarks.append(f"{name}: iterations are missing from its log, so its time and its calls are too small.")
        if course.marks and course.marks[0].iterations != 0:
            remarks.append(f"{name}: it has no evaluation before training.")
        remarks += [f"{name}: {text}" for text in _unscored(course.run)]
    return remarks + _unequal_starts(courses)


def _unscored(run: Run) -> list[str]:
    worst: dict[str, float] = {}
    for row in run.evals:
        for reward, failed in row.failed.items():
            worst[reward] = max(worst.get(reward, 0.0), failed)
    return [
        f"in an evaluation {reward} could not score {failed:.0f} images; its mean leaves them out."
        for reward, failed in worst.items()
        if failed > 0
    ]


def _unequal_starts(courses: Sequence[Course]) -> list[str]:
    """Say where the untouched model did not score alike: then the runs were not evaluated on the same images."""
    starts = [course.marks[0] for course in courses if course.marks and course.marks[0].iterations == 0]
    remarks: list[str] = []
    for name in dict.fromkeys(name for mark in starts for name in mark.figures):
        values = [mark.figures[name] for mark in starts if math.isfinite(mark.figures.get(name, math.nan))]
        error = max((mark.errors.get(name, math.nan) for mark in starts), default=math.nan)
        # Batches of another size round differently, so single images may be read otherwise: far below this.
        allowed = 0.5 * error if math.isfinite(error) else 1e-3
        if values and max(values) - min(values) > allowed:
            remarks.append(
                f"The untouched model scores {min(values):.4f} to {max(values):.4f} in {name}, depending on the run: "
                "the runs were not evaluated on the same prompts and noise."
            )
    return remarks
