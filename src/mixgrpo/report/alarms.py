"""The rule that watches for a deceived reward, evaluation by evaluation. Console, report and comparison ask it alike.

Everything is measured against the evaluation before training. The error of a change is that of the difference of two
independent means. Evaluations share their prompts and their noise, so the true error is rather smaller, and the rule
late rather than early. Where an error is not known, nothing tells a change from chance, and the rule is silent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixgrpo.config.schema import Config
from mixgrpo.report.read import Run
from mixgrpo.report.rows import EvalRow
from mixgrpo.report.summary import Estimate, difference, estimate, judges, reward_weights
from mixgrpo.report.text import change, listing, value

MARGIN = 1.0
"""A figure has risen or fallen when it has by more than this many standard errors of the change."""

DISAGREES, ALIKE = "The independent judge disagrees", "Images of a prompt have become alike"

_ADVICE = (
    "Look at the pictures. If they are worse: lower optim.lr or the weight of what rose, add {judge} as a reward with "
    "a small weight (then it is a judge no more), or keep the policy near its start with loss.kl_weight."
)


class Watch(NamedTuple):
    """What the rule has to know of a run's settings."""

    trained: tuple[str, ...]
    judges: tuple[str, ...]
    """Rewards that score held-out pictures only."""
    min_diversity: float
    """Share of the first diversity below which there is an alarm; 0: never."""


NOTHING = Watch((), (), 0.0)
"""Watches nothing."""


class Standing(NamedTuple):
    """What an evaluation found."""

    iteration: int
    rewards: Mapping[str, Estimate]
    diversity: float
    """NaN where it was not measured."""


class Alarm(NamedTuple):
    """Something that holds after an evaluation."""

    key: str
    """What raised it: "judge NAME" or "diversity"."""
    title: str
    text: str


def alarms(evals: Sequence[Standing], watch: Watch) -> list[Alarm]:
    """Return what holds after the last of `evals`, the first of which has to be the one before training.

    Judge: a trained reward's held-out mean has risen by more than the standard error of that change, while a judge's
    has fallen by more than its own. Diversity: it is below `watch.min_diversity` times that of the first evaluation
    which measured it.
    """
    if len(evals) < 2 or evals[0].iteration != 0:
        return []
    first, last = evals[0], evals[-1]
    risen = [name for name in watch.trained if _moved(first, last, name, up=True)]
    fallen = [name for name in watch.judges if _moved(first, last, name, up=False)]
    found = [_disagreement(first, last, risen, judge) for judge in fallen] if risen else []
    start = next((one for one in evals if math.isfinite(one.diversity)), last)
    if last.diversity < watch.min_diversity * start.diversity:
        found.append(_sameness(start, last, watch.min_diversity))
    return found


class Watcher:
    """Follows a run and says when an alarm begins, and when it ends."""

    def __init__(self, watch: Watch, earlier: Sequence[Standing] = ()) -> None:
        """Watch a run that has the evaluations `earlier` behind it, of which nothing is said again."""
        self._watch, self._evals = watch, list(earlier)
        self._holding = self._now()

    def resume(self, iteration: int) -> None:
        """Forget the evaluations that a run resumed at `iteration` makes again."""
        self._evals = [one for one in self._evals if one.iteration < iteration]
        self._holding = self._now()

    def take(self, standing: Standing) -> list[str]:
        """Take in an evaluation and return what there is to say."""
        before, self._evals = self._holding, [*self._evals, standing]
        self._holding = now = self._now()
        when = f"after {standing.iteration} iterations"
        begun = [f"ALARM {when}: {one.title}. {one.text}" for key, one in now.items() if key not in before]
        return begun + [f"alarm ended {when}: {one.title}" for key, one in before.items() if key not in now]

    def _now(self) -> dict[str, Alarm]:
        return {alarm.key: alarm for alarm in alarms(self._evals, self._watch)}


def watch_of_config(config: Config) -> Watch:
    """Return what the rule has to know, from a config."""
    return Watch(
        trained=tuple(reward.name for reward in config.rewards if reward.weight > 0),
        judges=tuple(reward.name for reward in config.rewards if reward.evaluation_only),
        min_diversity=config.guard.min_diversity,
    )


def watch_of_run(run: Run) -> Watch:
    """Return what the rule has to know, from a run's folder; a run from before there was the setting has it off."""
    least = run.setting("guard.min_diversity")
    unseen = judges(run)
    weights = reward_weights(run)
    return Watch(
        trained=tuple(name for name, weight in weights.items() if weight > 0 and name not in unseen),
        judges=tuple(name for name in weights if name in unseen),
        min_diversity=float(least) if isinstance(least, int | float) else 0.0,
    )


def standing_of(row: EvalRow) -> Standing:
    """Return what the rule looks at, of a row that was read."""
    names = (name for name in row.figures if "/" not in name)
    return Standing(row.iteration, {name: estimate(row, name) for name in names}, row.diversity)


def standing_of_json(row: Mapping[str, Any]) -> Standing:
    """Return what the rule looks at, of a row of kind "eval" that has just been made."""
    errors = row.get("standard_errors", {})
    rewards = {name: Estimate(_number(mean), _number(errors.get(name))) for name, mean in row["rewards"].items()}
    return Standing(row["iteration"], rewards, _number(row.get("diversity")))


def history(run: Run) -> list[tuple[int, list[Alarm]]]:
    """Return every evaluation's iteration and what held after it."""
    evals, watch = [standing_of(row) for row in run.evals], watch_of_run(run)
    return [(one.iteration, alarms(evals[: number + 1], watch)) for number, one in enumerate(evals)]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _step(first: Standing, last: Standing, name: str) -> Estimate:
    nothing = Estimate(math.nan, math.nan)
    return difference(last.rewards.get(name, nothing), first.rewards.get(name, nothing))


def _moved(first: Standing, last: Standing, name: str, *, up: bool) -> bool:
    step = _step(first, last, name)
    return (step.mean if up else -step.mean) > MARGIN * step.error


def _disagreement(first: Standing, last: Standing, risen: Sequence[str], judge: str) -> Alarm:
    def ends(name: str) -> str:
        return f"{name} ({value(first.rewards[name].mean)} → {value(last.rewards[name].mean)})"

    def step(name: str) -> str:
        found = _step(first, last, name)
        return f"{name} {change(found.mean)} ± {value(found.error)}"

    text = (
        f"{listing([ends(name) for name in risen])} rose on the held-out prompts, but {ends(judge)}, which no training "
        f"ever saw, fell: {', '.join(step(name) for name in [*risen, judge])}. {_ADVICE.format(judge=judge)}"
    )
    return Alarm(f"judge {judge}", DISAGREES, text)


def _sameness(start: Standing, last: Standing, share: float) -> Alarm:
    text = (
        f"Two images of a prompt differ by {value(last.diversity)}, {last.diversity / start.diversity:.2f} of the "
        f"{value(start.diversity)} at iteration {start.iteration} (guard.min_diversity = {share:g}). Look at several "
        "pictures of one prompt. If they have lost their variety: lower optim.lr, or keep the policy near its start "
        "with loss.kl_weight."
    )
    return Alarm("diversity", ALIKE, text)
