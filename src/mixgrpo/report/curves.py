"""The curves of a run: rewards in training and on the held-out prompts, and what the optimiser did."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import NamedTuple

from mixgrpo.report.alarms import watch_of_run
from mixgrpo.report.axes import smooth
from mixgrpo.report.charts import Chart, Series, line_chart
from mixgrpo.report.read import Run
from mixgrpo.report.rows import EvalRow, RewardStats, TrainRow
from mixgrpo.report.samplers import is_one_sampler, sampler_window
from mixgrpo.report.summary import Summary, estimate, in_order, reward_weights
from mixgrpo.report.text import MINUS, decimal, is_share

TRAINING, HELD_OUT, TRAINING_SAMPLER = 1, 2, 4
"""Colours that mean the same in every chart."""

LEAST_TO_SMOOTH = 12
"""Iterations below which a curve is drawn as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """What the horizontal axis counts."""

    css: str
    label: str
    of: Callable[[TrainRow | EvalRow], float]
    end: float
    whole: bool


def clocks(run: Run) -> tuple[Clock, Clock]:
    """Return the two horizontal axes: iterations, and running time in a unit that suits its length."""
    rows = [*run.train, *run.evals]
    seconds = max((row.elapsed for row in rows), default=1.0)
    unit, name = (3600.0, "hours") if seconds > 3 * 3600 else (60.0, "minutes") if seconds > 120 else (1.0, "seconds")
    iterations = float(max((row.iteration for row in rows), default=1))
    return (
        Clock(
            css="by-iteration",
            label="iteration",
            of=lambda row: float(row.iteration),
            end=iterations,
            whole=True,
        ),
        Clock(
            css="by-time",
            label=f"running time, {name}",
            of=lambda row: row.elapsed / unit,
            end=seconds / unit,
            whole=False,
        ),
    )


Draw = Callable[[Clock], Chart]


def panel(run: Run, caption: str, draw: Draw) -> str:
    """Return a figure with a title, a sentence, a legend and the chart over either clock."""
    by_clock = [(clock, draw(clock)) for clock in clocks(run)]
    first = by_clock[0][1]
    drawings = "".join(f'<div class="{clock.css}">{line_chart(chart)}</div>' for clock, chart in by_clock)
    return figure(first.title, caption, legend(first.series) + drawings)


def figure(title: str, caption: str, content: str) -> str:
    """Return a panel of the page around a chart."""
    words = f"<p>{caption}</p>" if caption else ""
    return f'<figure class="panel"><figcaption><h3>{escape(title)}</h3>{words}</figcaption>{content}</figure>'


def legend(series: Sequence[Series]) -> str:
    """Return the legend of a chart; a chart of one unnamed series needs none."""
    named = [s for s in series if s.in_legend]
    if len(named) < 2:
        return ""
    keys = "".join(f'<li><i class="key {s.style} k{s.color}"></i>{escape(s.name)}</li>' for s in named)
    return f'<ul class="legend">{keys}</ul>'


def reward_panels(run: Run, summary: Summary) -> list[str]:
    """Return one panel for every reward and detail."""
    trained = dict.fromkeys(name for row in run.train for name in (*row.rewards, *row.details))
    held_out = [figure.name for figure in summary.figures]
    names = [*held_out, *(name for name in trained if name not in held_out)]
    return [_reward_panel(run, summary, name) for name in in_order(names, reward_weights(run))]


def _reward_panel(run: Run, summary: Summary, name: str) -> str:
    scale = 100.0 if is_share(name) else 1.0
    rows = [row for row in summary.evals if name in row.figures]
    noisy = [row for row in rows if name in row.training_figures]
    moves = bool(noisy) and not is_one_sampler(sampler_window(run, row) for row in noisy)

    def draw(clock: Clock) -> Chart:
        points = [(clock.of(row), _train_value(row, name) * scale) for row in run.train]
        series = curve(points, "training", TRAINING) if any(math.isfinite(y) for _, y in points) else []
        if rows:
            errors = [estimate(row, name).error * scale for row in rows]
            places = [(clock.of(row), row.figures[name] * scale) for row in rows]
            series.append(Series(name="held-out", points=places, color=HELD_OUT, style="marked", errors=errors))
        if noisy:
            errors = [row.training_errors.get(name, math.nan) * scale for row in noisy]
            places = [(clock.of(row), row.training_figures[name] * scale) for row in noisy]
            label = "held-out, drawn as in training"
            style = "dots" if moves else "marked"
            series.append(Series(name=label, points=places, color=TRAINING_SAMPLER, style=style, errors=errors))
        best = summary.best
        ring = None
        if best is not None and name in best.figures and len(rows) > 1:
            ring = (clock.of(best), best.figures[name] * scale, "best")
        return Chart(
            title=name,
            x_label=clock.label,
            y_label="% of prompts" if scale > 1 else "mean score" if "/" not in name else "mean",
            series=series,
            x_range=(0.0, clock.end),
            whole_x=clock.whole,
            ring=ring,
        )

    return panel(run, _MOVED if moves else "", draw)


_MOVED = "“Drawn as in training” is with the window of the next iteration: these points are of different samplers."


def _train_value(row: TrainRow, name: str) -> float:
    return row.rewards[name].mean if name in row.rewards else row.details.get(name, math.nan)


def diversity_panels(run: Run) -> list[str]:
    """Return the panel on how much the images of a prompt differ; nothing where that was not measured."""
    rows = [row for row in run.evals if math.isfinite(row.diversity)]
    if not rows:
        return []
    watch = watch_of_run(run)

    def draw(clock: Clock) -> Chart:
        points = [(clock.of(row), row.diversity) for row in rows]
        return Chart(
            title="Diversity",
            x_label=clock.label,
            y_label="mean distance",
            series=[Series(name="held-out", points=points, color=HELD_OUT, style="marked", in_legend=False)],
            x_range=(0.0, clock.end),
            whole_x=clock.whole,
            levels={"alarm below": watch.min_diversity * rows[0].diversity} if watch.min_diversity else {},
            from_zero=True,
        )

    words = "How much two images of one held-out prompt differ, drawn from independent noises (0: not at all, 1: all)."
    return [panel(run, words, draw)]


def curve(points: Sequence[tuple[float, float]], name: str, color: int) -> list[Series]:
    """Return a curve over the iterations: as it is when short, else faint with its moving mean over it."""
    width = smoothing_width(len(points))
    if width == 1:
        return [Series(name=name, points=points, color=color)]
    means = smooth([y for _, y in points], width)
    line = [(x, mean) for (x, _), mean in zip(points, means, strict=True)]
    return [
        Series(name=f"{name}, mean of {width}", points=line, color=color),
        Series(name="each iteration", points=points, color=color, style="faint"),
    ]


def smoothing_width(count: int) -> int:
    """Return the odd number of iterations that a moving mean takes; 1 is no smoothing."""
    return 1 if count < LEAST_TO_SMOOTH else 2 * max(1, round(math.sqrt(count) / 4)) + 1


class Measure(NamedTuple):
    """A figure of the update that gets a curve."""

    key: str
    title: str
    unit: str
    caption: str = ""
    zero: float = 0.0
    """Subtracted from the values."""
    scale: float = 1.0
    limit: tuple[str, str] | None = None
    """The name of a horizontal line, and the setting that says where it is."""
    from_zero: bool = False


MEASURES = (
    Measure(
        "ratio_mean", "Mean ratio", f"ratio {MINUS} 1", "New over old likelihood of the samples; 0: no change.", 1.0
    ),
    Measure(
        "ratio_max",
        "Largest ratio",
        f"ratio {MINUS} 1",
        "Beyond the clip range a sample teaches nothing.",
        1.0,
        limit=("clip range", "loss.clip_range"),
    ),
    Measure("clip_fraction", "Clipped ratios", "% of ratios", scale=100.0, from_zero=True),
    Measure("kl", "KL to the starting model", "KL divergence", "How far the policy has moved."),
    Measure("grad_norm", "Gradient norm", "norm before clipping", limit=("clipped above", "optim.max_grad_norm")),
    Measure("lr", "Learning rate", "learning rate"),
    Measure(
        "skipped_groups",
        "Skipped groups",
        "groups",
        "Groups whose samples all scored alike, or of which fewer than two could be scored.",
        from_zero=True,
    ),
)


def optimiser_panels(run: Run) -> list[str]:
    """Return the panels on the update: spread, ratios, clipping, KL, gradient, rate, and what was skipped."""
    panels = [_spread_panel(run), *_share_panels(run)] if any(row.rewards for row in run.train) else []
    for measure in MEASURES:
        values = {row.figures[measure.key] for row in run.train if measure.key in row.figures}
        if len(values) > 1:
            panels.append(panel(run, measure.caption, _measure_chart(run, measure)))
    return panels + _failure_panels(run)


def _measure_chart(run: Run, measure: Measure) -> Draw:
    rows = [row for row in run.train if measure.key in row.figures]
    values = [(row.figures[measure.key] - measure.zero) * measure.scale for row in rows]
    levels: dict[str, float] = {}
    if measure.limit is not None:
        level = run.setting(measure.limit[1])
        # A limit far above the curve would press the curve flat.
        if isinstance(level, int | float) and level <= 2 * max(values):
            levels[measure.limit[0]] = float(level)

    def draw(clock: Clock) -> Chart:
        points = [(clock.of(row), value) for row, value in zip(rows, values, strict=True)]
        smoothed = curve(points, measure.title, TRAINING)
        # The learning rate is set, not measured: there is no noise to take a mean over.
        series = [Series(name=measure.title, points=points, color=TRAINING)] if measure.key == "lr" else smoothed
        return Chart(
            title=measure.title,
            x_label=clock.label,
            y_label=measure.unit,
            series=[replace(one, in_legend=False) for one in series],
            x_range=(0.0, clock.end),
            whole_x=clock.whole,
            levels=levels,
            from_zero=measure.from_zero,
        )

    return draw


def _spread_panel(run: Run) -> str:
    names = list(dict.fromkeys(name for row in run.train for name in row.rewards))
    words = "How much the samples of one prompt differ in score: what the advantages are made of."
    draw = _by_reward(run, names, "Spread within groups", "standard deviation", lambda stats: stats.group_std)
    return panel(run, words, draw)


def _share_panels(run: Run) -> list[str]:
    """Return the panel on what the advantages come from, where that is a question."""
    stats = [(name, one) for row in run.train for name, one in row.rewards.items()]
    # A share of exactly 0 is that of a reward with weight 0.
    names = list(dict.fromkeys(name for name, one in stats if math.isfinite(one.advantage_share or math.nan)))
    if len(names) < 2:
        return []
    words = "How much of the samples' advantages each reward makes; below 0: the others outvote it."
    draw = _by_reward(run, names, "Share of the advantages", "%", lambda stats: 100.0 * stats.advantage_share)
    return [panel(run, words, draw)]


def _by_reward(run: Run, names: Sequence[str], title: str, unit: str, value: Callable[[RewardStats], float]) -> Draw:
    def draw(clock: Clock) -> Chart:
        series: list[Series] = []
        for number, name in enumerate(names):
            points = [(clock.of(row), value(row.rewards[name])) for row in run.train if name in row.rewards]
            first, *rest = curve(points, name, number % 6 + 1)
            # One entry per reward in the legend: the faint lines are the same rewards.
            series += [replace(first, name=name), *(replace(faint, in_legend=False) for faint in rest)]
        return Chart(
            title=title,
            x_label=clock.label,
            y_label=unit,
            series=series,
            x_range=(0.0, clock.end),
            whole_x=clock.whole,
            from_zero=True,
        )

    return draw


def _failure_panels(run: Run) -> list[str]:
    counts = {"Skipped updates": [row.figures.get("skipped_updates", 0.0) for row in run.train]}
    for name in dict.fromkeys(name for row in run.train for name in row.rewards):
        counts[f"Samples that {name} could not score"] = [
            float(row.rewards[name].failed) if name in row.rewards else 0.0 for row in run.train
        ]
    return [panel(run, "", _bar_chart(run, title, values)) for title, values in counts.items() if any(values)]


def _bar_chart(run: Run, title: str, values: Sequence[float]) -> Draw:
    def draw(clock: Clock) -> Chart:
        points = [(clock.of(row), value) for row, value in zip(run.train, values, strict=True)]
        return Chart(
            title=title,
            x_label=clock.label,
            y_label="number",
            series=[Series(name=title, points=points, color=6, style="bars")],
            x_range=(0.0, clock.end),
            whole_x=clock.whole,
            from_zero=True,
            whole_y=True,
        )

    return draw


def constants(run: Run) -> str:
    """Say in words what did not change, and so has no chart."""
    words: list[str] = []
    for measure in MEASURES:
        values = {row.figures[measure.key] for row in run.train if measure.key in row.figures}
        if len(values) == 1:
            value = values.pop()
            words.append(f"{measure.title.lower()} {f'{value:.6g}' if measure.zero else decimal(value)}")
    if run.train and not any(row.figures.get("skipped_updates", 0.0) for row in run.train):
        words.append("skipped updates 0")
    if run.train and not any(stats.failed for row in run.train for stats in row.rewards.values()):
        words.append("failed scores 0")
    return f'<p class="quiet">The same throughout, so not drawn: {escape(", ".join(words))}.</p>' if words else ""
