"""Looks for what goes wrong in a run, and says it in plain words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from mixgrpo.report.alarms import Alarm, history
from mixgrpo.report.read import Run
from mixgrpo.report.rows import EvalRow
from mixgrpo.report.summary import Estimate, Figure, Summary, difference, estimate, mean_of, reward_weights
from mixgrpo.report.text import change, count, decimal, is_share, listing, percent, value

CLEAR = 2.0
"""A change counts when it is this many standard errors large."""

COLLAPSED_SPREAD = 0.3
"""Alarm when the spread within groups has fallen to this share of what it was."""

ENDS = 10
"""Iterations that stand for the beginning and for the end of a training curve (at most a quarter of it each)."""

MANY_CLIPPED = 0.5
"""Alarm when more than this share of the ratios is clipped over the last iterations."""


_ADVICE = (
    "The policy may be gaining score without getting better: look at the pictures, lower the learning rate, add a "
    "reward that sees what is lost, or keep an earlier checkpoint."
)

MANY_SILENT = 0.5
"""Alarm when more than this share of the groups had no advantage over the last iterations."""


class Level(StrEnum):
    """How much a note matters."""

    GOOD = "good"
    NOTE = "note"
    ALARM = "alarm"


class Note(NamedTuple):
    """One finding: a headline and what it means."""

    level: Level
    title: str
    text: str


def health_notes(run: Run, summary: Summary) -> list[Note]:
    """Return what was found, alarms first."""
    notes = [
        *alarm_notes(run, summary),
        *_reward_hacking(run, summary),
        *_independent_judge(run, summary),
        *_drop_after_best(summary),
        *_unsure_gain(summary),
        *_spread_collapse(run),
        *_failures(run),
        *_silent_groups(run),
        *_clipping(run),
        *(Note(Level.NOTE, "The log of the run", remark) for remark in run.remarks),
    ]
    order = list(Level)[::-1]
    return sorted(notes, key=lambda note: order.index(note.level))


def alarm_notes(run: Run, summary: Summary) -> list[Note]:
    """Return what the rule on deceived rewards and lost variety says of the run, one note for each that ever held.

    It is an alarm if it holds after the last evaluation, or after the one whose weights count as the result.
    """
    told = history(run)
    by_key: dict[str, dict[int, Alarm]] = {}
    for iteration, found in told:
        for one in found:
            by_key.setdefault(one.key, {})[iteration] = one
    result = summary.after.iteration if summary.after is not None else -1
    notes = [_alarm_note(held, [iteration for iteration, _ in told], result) for held in by_key.values()]
    return sorted(notes, key=lambda note: note.level is not Level.ALARM)


def _alarm_note(held: Mapping[int, Alarm], evals: Sequence[int], result: int) -> Note:
    last = max(held)
    counted = f"It held after {len(held)} of {count(len(evals), 'evaluation')}, first at iteration {min(held)}"
    if last == evals[-1]:
        words = f"{held[last].text} {counted}, and holds after the last."
        return Note(Level.ALARM, held[last].title, words)
    ended = f"and no more from iteration {evals[evals.index(last) + 1]} on."
    if result in held:
        words = f"{held[result].text} These are the weights of iteration {result}, the best. {counted}, {ended}"
        return Note(Level.ALARM, held[result].title, words)
    return Note(Level.NOTE, f"{held[last].title}: it did for a while", f"{counted}, {ended} {held[last].text}")


def _ends(values: Sequence[float]) -> tuple[Estimate, Estimate] | None:
    """Return the mean over the beginning and over the end of a curve with their standard errors."""
    width = min(ENDS, len(values) // 4)
    if width < 2:
        return None
    return _mean(values[:width]), _mean(values[-width:])


def _mean(values: Sequence[float]) -> Estimate:
    mean = mean_of(values)
    variance = mean_of([(value - mean) ** 2 for value in values])
    return Estimate(mean, math.sqrt(variance / (len(values) - 1)))


def _is_clear(step: Estimate) -> bool:
    # Without a known error nothing tells a change from chance, so any change counts.
    return abs(step.mean) > (CLEAR * step.error if math.isfinite(step.error) else 0.0)


def _reward_hacking(run: Run, summary: Summary) -> Iterator[Note]:
    """Compare training with the held-out prompts, since the first evaluation and since the best."""
    first, last = (summary.evals[0], summary.evals[-1]) if summary.evals else (None, None)
    if first is None or last is None or first is last:
        return
    rose = _trained_steps(run, first.iteration, lambda step: step.mean > 0 and _is_clear(step))
    fell = _fallen(summary, first, last)
    if fell and rose:
        words = f"While {listing(rose)} rose on the training prompts, {listing(fell)} fell on the held-out prompts."
        yield Note(Level.ALARM, "Possible reward hacking", f"{words} {_ADVICE}")
        return
    if fell:
        words = f"Compared with iteration {first.iteration}, {listing(fell)} fell by more than the sampling error."
        yield Note(Level.ALARM, "Held-out figures fell", words)
        return
    best = summary.best
    if best is not None and best is not first and (lost := _fallen(summary, best, last)):
        kept = _trained_steps(run, best.iteration, lambda step: step.mean > 0 or not _is_clear(step))
        if kept:
            words = (
                f"From iteration {best.iteration} on, {listing(kept)} held or rose on the training prompts, but "
                f"{listing(lost)} fell on the held-out prompts."
            )
            yield Note(Level.ALARM, "Possible reward hacking", f"{words} {_ADVICE}")
    elif rose:
        words = f"{listing(rose)} rose in training, and no held-out figure fell by more than twice its standard error."
        yield Note(Level.GOOD, "No sign of reward hacking", words)


def _independent_judge(run: Run, summary: Summary) -> Iterator[Note]:
    """Say whether a judge that no training ever saw confirms what the trained rewards gained, unless it disagrees."""
    gained = [figure for figure in summary.figures if figure.weight > 0 and _has_risen(figure)]
    if summary.after is None or not gained:
        return
    disagree = {one.key for iteration, found in history(run) if iteration == summary.after.iteration for one in found}
    names = listing([f"{figure.name} ({_step(figure.before, figure.after, share=False)})" for figure in gained])
    for judge in (figure for figure in summary.figures if figure.is_judge and "/" not in figure.name):
        words = f"{names} rose on the held-out prompts"
        who = f"{judge.name} ({_step(judge.before, judge.after, share=False)}), which no training ever saw,"
        if _has_risen(judge):
            yield Note(Level.GOOD, "The independent judge agrees", f"{words}, and so did {who[:-1]}.")
        elif f"judge {judge.name}" not in disagree:
            yield Note(Level.NOTE, "The independent judge sees no clear gain", f"{words}; {who} did not clearly.")


def _has_risen(figure: Figure) -> bool:
    return figure.change.mean > 0 and _is_clear(figure.change)


def _fallen(summary: Summary, since: EvalRow, last: EvalRow) -> list[str]:
    """Name the held-out figures that are clearly lower at `last` than at `since`."""
    fallen: list[str] = []
    for name in (figure.name for figure in summary.figures):
        before, after = (estimate(row, name) for row in (since, last))
        step = difference(after, before)
        if step.mean < 0 and _is_clear(step):
            fallen.append(f"{name} ({_step(before, after, share=is_share(name))})")
    return fallen


def _trained_steps(run: Run, since: int, holds: Callable[[Estimate], bool]) -> list[str]:
    """Name the trained rewards whose change in training, from iteration `since` to the end, `holds`."""
    weights = reward_weights(run)
    names: list[str] = []
    for name in dict.fromkeys(name for row in run.train for name in row.rewards):
        means = [row.rewards[name].mean for row in run.train if name in row.rewards and row.iteration >= since]
        ends = _ends(means)
        if ends is not None and weights.get(name, 1.0) != 0 and holds(difference(ends[1], ends[0])):
            names.append(f"{name} ({_step(*ends, share=False)})")
    return names


def _step(before: Estimate, after: Estimate, *, share: bool) -> str:
    return f"{value(before.mean, share=share)} → {value(after.mean, share=share)}"


def _drop_after_best(summary: Summary) -> Iterator[Note]:
    """Say when the run went downhill after its best evaluation."""
    best, last = summary.best, summary.last
    if best is None or last is None or best is last:
        return
    if best is summary.first:
        yield Note(
            Level.ALARM,
            "No evaluation beat the untouched model",
            f"The best of {count(len(summary.evals), 'evaluation')} is the one before training.",
        )
        return
    drops = _fallen(summary, best, last)
    if drops:
        yield Note(
            Level.ALARM,
            "Worse after the best",
            f"From its best at iteration {best.iteration} to iteration {last.iteration}, {listing(drops)} fell by "
            "more than the sampling error. Use the best checkpoint, not the last; fewer iterations, a falling "
            "learning rate or a moving average of the weights (optim.ema_decay) may hold the gain.",
        )
    else:
        yield Note(
            Level.NOTE,
            "The best is not the last",
            f"Iteration {best.iteration} was best; what came after, to iteration {last.iteration}, is within the "
            "sampling error of it.",
        )


def _unsure_gain(summary: Summary) -> Iterator[Note]:
    """Name the trained figures whose change may be chance."""
    after = summary.after
    if after is None:
        return
    trained = [figure for figure in summary.figures if figure.weight != 0 or "/" in figure.name]
    known = [figure for figure in trained if math.isfinite(figure.change.error)]
    unsure = [
        f"{figure.name} ({change(figure.change.mean, share=figure.is_share)} "
        f"± {change(figure.change.error, share=figure.is_share).removeprefix('+')})"
        for figure in known
        if not _is_clear(figure.change)
    ]
    if unsure:
        yield Note(
            Level.NOTE,
            "May be chance",
            f"The change of {listing(unsure)} is less than {CLEAR:.0f} standard errors. "
            "More held-out prompts would tell.",
        )


def _spread_collapse(run: Run) -> Iterator[Note]:
    """Look at the spread within groups, without which there is nothing to learn from."""
    for name in dict.fromkeys(name for row in run.train for name in row.rewards):
        ends = _ends([row.rewards[name].group_std for row in run.train if name in row.rewards])
        if ends is None or not ends[0].mean > 0:
            continue
        share = ends[1].mean / ends[0].mean
        if share < COLLAPSED_SPREAD:
            means = _ends([row.rewards[name].mean for row in run.train if name in row.rewards])
            # a rise of more than the spread that is left: the samples agree because they are right
            is_solved = means is not None and means[1].mean - means[0].mean > ends[1].mean
            words = (
                f"The spread of {name} within a prompt's samples fell from {decimal(ends[0].mean)} to "
                f"{decimal(ends[1].mean)}, {percent(share, 0)} of what it was, "
            )
            words += (
                "while its mean rose: the reward is nearly solved, and there is little left to learn from it."
                if is_solved
                else "and its mean did not rise with it: the pictures may have lost their variety; with no spread "
                "there is nothing left to learn from."
            )
            yield Note(
                Level.NOTE if is_solved else Level.ALARM, f"Samples of a prompt have become alike in {name}", words
            )


def _failures(run: Run) -> Iterator[Note]:
    """Count the scores and updates that were left out."""
    lost: list[str] = []
    for name in dict.fromkeys(name for row in run.train for name in row.rewards):
        failed = sum(row.rewards[name].failed for row in run.train if name in row.rewards)
        if failed:
            lost.append(f"{name} could not score {count(failed, 'training sample')}{_share_of_samples(run, failed)}")
    for name in dict.fromkeys(name for row in run.evals for name in row.failed):
        failed = round(sum(row.failed.get(name, 0.0) for row in run.evals))
        if failed:
            lost.append(f"{name} could not score {count(failed, 'picture')} of the evaluations")
    if lost:
        words = f"{listing(lost)}. Such samples were left out; they never count as a score of 0."
        yield Note(Level.NOTE, "Failed rewards", words)
    updates = round(sum(row.figures.get("skipped_updates", 0.0) for row in run.train))
    if updates:
        words = f"{count(updates, 'update')} had a loss or gradient that is not finite and did not change the weights."
        yield Note(Level.ALARM, "Skipped updates", words)
    if run.ending is not None and run.ending.has_stopped:
        yield Note(Level.ALARM, "The run stopped by itself", run.ending.why)
    elif run.train and not lost and not updates:
        yield Note(Level.GOOD, "Nothing failed", "Every sample was scored, and no update was skipped.")


def _silent_groups(run: Run) -> Iterator[Note]:
    """Look at the groups whose advantages were all zero."""
    groups = run.setting("prompts_per_iteration")
    skipped = [row.figures.get("skipped_groups", 0.0) for row in run.train]
    if not any(skipped) or not isinstance(groups, int):
        return
    share, latest = mean_of(skipped) / groups, mean_of(skipped[-ENDS:]) / groups
    words = (
        f"{percent(share)} of the groups ({round(sum(skipped)):,}) had no advantage to learn from, because their "
        "samples all scored alike or fewer than two could be scored; over the last "
        f"{count(len(skipped[-ENDS:]), 'iteration')} it was {percent(latest)}."
    )
    if latest > MANY_SILENT:
        words += " Prompts that are neither solved nor hopeless teach more; more samples per prompt help too."
    yield Note(Level.ALARM if latest > MANY_SILENT else Level.NOTE, "Groups without a signal", words)


def _share_of_samples(run: Run, failed: int) -> str:
    prompts, group = run.setting("prompts_per_iteration"), run.setting("rollout.group_size")
    if not isinstance(prompts, int) or not isinstance(group, int):
        return ""
    return f" ({percent(failed / (prompts * group * len(run.train)))})"


def _clipping(run: Run) -> Iterator[Note]:
    """Notice when most of the update is thrown away."""
    fractions = [row.figures["clip_fraction"] for row in run.train if "clip_fraction" in row.figures]
    latest = mean_of(fractions[-ENDS:])
    if latest > MANY_CLIPPED:
        yield Note(
            Level.ALARM,
            "Most ratios are clipped",
            f"Over the last {count(len(fractions[-ENDS:]), 'iteration')}, {percent(latest, 0)} of the ratios fell "
            "outside the clip range and taught nothing. The learning rate is likely too high for it.",
        )
