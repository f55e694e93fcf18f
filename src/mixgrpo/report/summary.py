"""What a run came to: each held-out figure before and after, with its sampling error."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mixgrpo.report.read import Run
from mixgrpo.report.rows import EvalRow
from mixgrpo.report.text import is_share


class Estimate(NamedTuple):
    """A mean over prompts and its standard error; the error is NaN where it cannot be known."""

    mean: float
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One held-out figure over the whole run."""

    name: str
    """A reward ("ocr") or a detail of one ("ocr/exact")."""
    weight: float
    """Weight in training; 0 for what is only measured, NaN where the config does not say."""
    is_judge: bool
    """Whether only held-out pictures are scored by it: no training ever saw it."""
    before: Estimate
    after: Estimate
    """At the best evaluation, or at the last where none beat the first."""
    last: Estimate

    @property
    def is_share(self) -> bool:
        """Whether the figure is a share, shown in percent."""
        return is_share(self.name)

    @property
    def change(self) -> Estimate:
        """After minus before.

        The error takes the two for independent. They share prompts and noise, so the true error is rather smaller.
        """
        return difference(self.after, self.before)


def difference(later: Estimate, earlier: Estimate) -> Estimate:
    """Return `later` minus `earlier` with the standard error of two independent means."""
    return Estimate(later.mean - earlier.mean, math.hypot(later.error, earlier.error))


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The held-out evaluations of a run, and what became of each figure."""

    evals: tuple[EvalRow, ...]
    best: EvalRow | None
    figures: tuple[Figure, ...]
    """Rewards in the order of the config, each followed by its details."""
    num_prompts: int
    """Held-out prompts of an evaluation; 0 if unknown."""

    @property
    def first(self) -> EvalRow | None:
        """The untouched model's evaluation, or None."""
        return self.evals[0] if self.evals and self.evals[0].iteration == 0 else None

    @property
    def last(self) -> EvalRow | None:
        """The latest evaluation, or None."""
        return self.evals[-1] if self.evals else None

    @property
    def after(self) -> EvalRow | None:
        """The evaluation that "after" means: the best, or the last where none beat the first; None if there is none."""
        return _after(self.evals, self.best) if len(self.evals) > 1 else None


def summarise(run: Run) -> Summary:
    """Sum up the held-out evaluations of `run`."""
    evals = run.evals
    best = next((row for row in reversed(evals) if row.best), None)
    weights, unseen = reward_weights(run), judges(run)
    figures: list[Figure] = []
    if evals:
        rows = (evals[0], _after(evals, best), evals[-1])
        for name in in_order((name for row in evals for name in row.figures), weights):
            before, after, last = (estimate(row, name) for row in rows)
            weight = weights.get(name, 0.0 if weights else math.nan)
            is_judge = name.partition("/")[0] in unseen
            figures.append(Figure(name=name, weight=weight, is_judge=is_judge, before=before, after=after, last=last))
    num_prompts = next((row.num_prompts for row in reversed(evals) if row.num_prompts), 0)
    return Summary(evals=evals, best=best, figures=tuple(figures), num_prompts=num_prompts)


def _after(evals: Sequence[EvalRow], best: EvalRow | None) -> EvalRow:
    # With the untouched model itself as the best, "before and after" would show nothing: then the last is what counts.
    return evals[-1] if best is None or best is evals[0] else best


def reward_weights(run: Run) -> dict[str, float]:
    """Return name -> weight of the rewards, in the order of the config."""
    weights: dict[str, float] = {}
    rewards: Any = run.setting("rewards")
    for reward in rewards if isinstance(rewards, list) else ():
        match reward:
            case {"name": str(name), **others}:
                weight = others.get("weight", 1.0)
                weights[name] = float(weight) if isinstance(weight, int | float) else math.nan
            case _:
                continue
    return weights


def judges(run: Run) -> set[str]:
    """Return the names of the rewards that score held-out pictures only."""
    rewards: Any = run.setting("rewards")
    listed = rewards if isinstance(rewards, list) else ()
    return {str(r.get("name")) for r in listed if isinstance(r, dict) and r.get("evaluation_only") is True}


def estimate(row: EvalRow, name: str) -> Estimate:
    """Return a figure of one evaluation with its standard error.

    Where the row tells no error, that of a share p is sqrt(p (1 - p) / n), and of anything else unknown.
    """
    mean = row.figures.get(name, math.nan)
    if name in row.errors:
        return Estimate(mean, row.errors[name])
    if is_share(name) and row.num_prompts and 0 <= mean <= 1:
        return Estimate(mean, math.sqrt(mean * (1.0 - mean) / row.num_prompts))
    return Estimate(mean, math.nan)


def mean_of(numbers: Sequence[float]) -> float:
    """Return the mean of those numbers that are finite; NaN if none is."""
    finite = [number for number in numbers if math.isfinite(number)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def in_order(names: Iterable[str], rewards: Iterable[str]) -> list[str]:
    """Return figures in the order of the config's rewards, each reward followed by its details."""
    found, known = list(dict.fromkeys(names)), list(rewards)

    def place(name: str) -> tuple[int, str, bool, int]:
        reward = name.split("/", 1)[0]
        number = known.index(reward) if reward in known else len(known)
        return number, reward, "/" in name, found.index(name)

    return sorted(found, key=place)
