"""The verdicts of a comparison in words, worked out from its results."""

import math
from collections.abc import Callable, Mapping, Sequence

from mixgrpo.report.alarms import ALIKE, history
from mixgrpo.report.compare_results import MethodResult, Results, Spread, spread
from mixgrpo.report.comparison import WEIGHTED_SUM, HeldOut
from mixgrpo.report.health import Level, Note
from mixgrpo.report.text import change, count, listing, value

MANY = 8
"""More methods than this are counted rather than named."""


def verdicts(results: Results) -> list[Note]:
    """Return what the comparison says, the most important first."""
    makers: tuple[Callable[[Results], Note | None], ...] = (
        _progress,
        _race,
        _field,
        _finals,
        _judge,
        _variety,
        _samplers,
    )
    notes = [note for make in makers if (note := make(results)) is not None]
    return notes + [Note(level=Level.ALARM, title="Take care", text=text) for text in results.comparison.remarks]


def deceivers(results: Results, judge: str) -> list[MethodResult]:
    """Return the methods of which, after the last evaluation of every seed, a trained reward rose while `judge` fell.

    By more than a standard error each, as `alarms` says.
    """
    return [method for method in results.methods if _alarmed(results, method, f"judge {judge}")]


def _alarmed(results: Results, method: MethodResult, key: str) -> bool:
    """Say whether an alarm holds after the last evaluation of all runs that a method's figures are of."""
    contender = next(one for one in results.comparison.contenders if one.entrant.name == method.name)
    lasts = [history(course.run)[-1][1] for course in contender.counted]
    return bool(lasts) and all(key in {alarm.key for alarm in found} for found in lasts)


def _variety(results: Results) -> Note | None:
    """Name the methods whose images of a prompt have become alike in every seed."""
    alike = [method.title for method in results.methods if _alarmed(results, method, "diversity")]
    if not alike:
        return None
    text = f"{listing(alike)} ended{_every(results)} with images of a prompt that differ far less than the untouched "
    text += "model's do (guard.min_diversity): look at several pictures of one prompt."
    return Note(level=Level.ALARM, title=ALIKE, text=text)


def judges(results: Results) -> list[HeldOut]:
    """Return the rewards that no training saw, without their details."""
    return [figure for figure in results.comparison.figures if figure.role == "judge" and "/" not in figure.name]


def reach_words(method: MethodResult, results: Results) -> str:
    """Say in how much of the target method's time a method reached its final reward, or that it did not."""
    reach, reference = method.reach, results.reference
    if not reach.seeds:
        return "has no finished run yet"
    seeds = f"{reach.reached} of {count(len(reach.seeds), 'seed')}"
    share, passes = reach.ratio("seconds"), reach.ratio("passes")
    if not math.isfinite(share):
        return f"did not reach {reference.title}'s final reward ({seeds} did)"
    also = f" and {passes:.2f} of its model calls" if math.isfinite(passes) else ""
    return f"reached {reference.title}'s final reward in {share:.2f} of its training time{also} ({seeds})"


def level_with_best(spreads: Mapping[str, Spread]) -> set[str]:
    """Return the best by mean, and those whose range over the seeds reaches into its range.

    Nothing where any has fewer than two seeds: there chance cannot be told from merit.
    """
    if not spreads or any(one.runs < 2 for one in spreads.values()):
        return set()
    best = max(spreads.values(), key=lambda one: one.mean)
    return {name for name, one in spreads.items() if one.high >= best.low}


def _progress(results: Results) -> Note | None:
    if results.is_complete:
        return None
    planned = len(results.methods) * results.comparison.terms.seeds
    ended = sum(method.finished + method.stopped for method in results.methods)
    underway = [method.title for method in results.methods if method.provisional]
    text = f"{ended} of {count(planned, 'run')} have ended. Figures are of the runs that have."
    if underway:
        text += f" Of {listing(underway)} none has; what is shown is where the runs under way are."
    return Note(level=Level.NOTE, title="Not complete", text=text)


def _race(results: Results) -> Note | None:
    reference = results.reference
    if not math.isfinite(results.target):
        text = f"{reference.title} has no finished run yet, and its final reward is what the others have to reach."
        return Note(level=Level.NOTE, title="No target yet", text=text)
    if not results.is_goal:
        text = (
            f"{reference.title} ended at {value(results.target)}, no higher than the untouched model, so there is "
            "nothing for the others to reach."
        )
        return Note(level=Level.NOTE, title="No race", text=text)
    others = [method for method in results.methods if method is not reference]
    racers = [method for method in others if math.isfinite(method.reach.ratio("seconds"))]
    if not others:
        return None
    goal = f"{reference.title}'s final reward ({value(results.target)})"
    if not racers:
        return Note(level=Level.NOTE, title="Nobody got there", text=f"No other method reached {goal} in most seeds.")
    first = min(racers, key=lambda method: method.reach.ratio("seconds"))
    level = [method.title for method in racers if method is not first and _overlaps(method, first)]
    words = reach_words(first, results).replace("final reward", f"final reward ({value(results.target)})", 1)
    text = f"{first.title} {words}."
    if level:
        text += f" Level with it, as the ranges over the seeds overlap: {_names(level)}."
    deceived = {method.name for judge in judges(results) for method in deceivers(results, judge.name)}
    honest = [method for method in racers if method.name not in deceived]
    if first.name in deceived:
        text += " But the independent judge scores it below the untouched model."
        if honest:
            second = min(honest, key=lambda method: method.reach.ratio("seconds"))
            text += f" The fastest of the others, {second.title}, took {second.reach.ratio('seconds'):.2f}."
    return Note(level=Level.GOOD, title="Fastest" if len(others) > 1 else "Time", text=text)


def _overlaps(method: MethodResult, first: MethodResult) -> bool:
    """Say whether two methods' shares of the time overlap over the seeds."""
    shares = [[seed.ratio["seconds"] for seed in one.reach.seeds if seed.ratio is not None] for one in (method, first)]
    return min(map(len, shares)) > 1 and min(shares[0]) <= max(shares[1])


def _field(results: Results) -> Note | None:
    others = [method for method in results.methods if method is not results.reference and method.reach.seeds]
    if len(others) < 2:
        return None
    all_, some, none = [], [], []
    for method in others:
        reached, seeds = method.reach.reached, len(method.reach.seeds)
        if reached == seeds:
            all_.append(method.title)
        elif reached:
            some.append(f"{method.title} ({reached} of {seeds})")
        else:
            none.append(method.title)
    parts = [f"in every seed: {_names(all_)}"] if all_ else []
    parts += [f"in some seeds: {_names(some)}"] if some else []
    parts += [f"never: {_names(none)}"] if none else []
    text = f"{results.reference.title}'s final reward was reached {'; '.join(parts)}."
    return Note(level=Level.NOTE, title="Who got there", text=text)


def _names(titles: list[str]) -> str:
    return listing(titles) if len(titles) <= MANY else f"{len(titles)} methods"


def _finals(results: Results) -> Note | None:
    decisive = results.comparison.decisive
    finals = {m.title: m.finals[decisive] for m in results.methods if _has(m, decisive) and not m.provisional}
    if len(finals) < 2:
        return None
    best = max(finals, key=lambda title: finals[title].mean)
    words = f"{best} ended highest in {_named(results, decisive)}: {_range(finals[best], _share(results, decisive))}."
    if any(one.runs < 2 for one in finals.values()):
        words += " Where a method has one seed only, chance cannot be told from merit."
        return Note(level=Level.NOTE, title="Highest reward", text=words)
    level = sorted(level_with_best(finals) - {best}, key=lambda title: -finals[title].mean)
    if len(level) == len(finals) - 1:
        words += " The ranges over the seeds of all others reach into its range, so this tells no difference."
        return Note(level=Level.NOTE, title="Highest reward", text=words)
    if level:
        words += f" Level with it, as the ranges over the seeds overlap: {_names(level)}."
    return Note(level=Level.GOOD, title="Highest reward", text=words)


def _judge(results: Results) -> Note | None:
    methods = [method for method in results.methods if method.curve]
    if not methods:
        return None
    if not judges(results):
        text = "No reward was for evaluation only, so a method that deceives its rewards would not show here."
        return Note(level=Level.NOTE, title="No independent judge", text=text)
    notes = [_judged(results, methods, judge) for judge in judges(results)]
    return max(notes, key=lambda note: note.level is Level.ALARM)


def _judged(results: Results, methods: Sequence[MethodResult], judge: HeldOut) -> Note:
    before, who = results.before[judge.name].mean, f"{judge.name}, which no training ever saw,"
    if fell := deceivers(results, judge.name):
        names = [f"{method.title} ({change(method.finals[judge.name].mean - before)})" for method in fell]
        text = (
            f"{who} scores {listing(names)} below the untouched model ({value(before)}){_every(results)}, although "
            "the trained rewards rose: the sign of a deceived reward."
        )
        return Note(level=Level.ALARM, title="The independent judge disagrees", text=text)
    rose = [method.finals[judge.name] for method in methods if method.finals[judge.name].low > before]
    unclear = [method.title for method in methods if not method.finals[judge.name].low > before]
    text = f"{who} tells no clear change."
    if rose:
        ends = spread(one.mean for one in rose)
        text = f"{who} rose from {value(before)} to {_between(ends)} with {_all_or(len(rose), len(methods))}."
    if unclear:
        return Note(level=Level.NOTE, title="Independent judge", text=f"{text} Unclear: {listing(unclear)}.")
    return Note(level=Level.GOOD, title="The independent judge agrees", text=text)


def _every(results: Results) -> str:
    return " in every seed" if results.comparison.terms.seeds > 1 else ""


def _all_or(number: int, total: int) -> str:
    return "every method" if number == total and total > 1 else f"{number} of {count(total, 'method')}"


def _between(ends: Spread) -> str:
    low, high = value(ends.low), value(ends.high)
    return low if low == high else f"between {low} and {high}"


def _samplers(results: Results) -> Note | None:
    decisive = results.comparison.decisive
    gaps = {m.title: m.gap_after[decisive].gap.mean for m in results.methods if decisive in m.gap_after}
    if not gaps:
        return None
    least, most = (choose(gaps, key=lambda title: abs(gaps[title])) for choose in (min, max))
    text = f"Without noise (ODE) the trained models score {change(gaps[most])} against the training sampler"
    if len(gaps) > 1:
        text += f" with {most}, the largest gap, and {change(gaps[least])} with {least}, the smallest"
    text += f": held-out means of {_named(results, decisive)} after training, as the last iteration drew its samples."
    return Note(level=Level.NOTE, title="Samplers", text=text)


def _has(method: MethodResult, name: str) -> bool:
    return name in method.finals and not method.finals[name].is_empty


def _named(results: Results, name: str) -> str:
    figure = next(figure for figure in results.comparison.figures if figure.name == name)
    return f"the {name} ({figure.words.partition(',')[0]})" if name == WEIGHTED_SUM else name


def _share(results: Results, name: str) -> bool:
    return next(figure for figure in results.comparison.figures if figure.name == name).is_share


def _range(one: Spread, share: bool) -> str:
    mean = value(one.mean, share=share)
    if one.runs < 2:
        return mean
    return f"{mean}, {value(one.low, share=share)} to {value(one.high, share=share)} over {one.runs} seeds"
