"""What a run cost: time, and model calls beside those of other methods."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from mixgrpo.flow.plan import plan_trajectory
from mixgrpo.report.charts import Chart, Part, stacked_bar
from mixgrpo.report.curves import TRAINING, Clock, curve, figure, panel
from mixgrpo.report.read import Run
from mixgrpo.report.rows import TrainRow
from mixgrpo.report.summary import mean_of
from mixgrpo.report.text import NONE, TIMES, decimal, duration, gib, percent, seconds
from mixgrpo.report.timeline import num_steps

FORWARD_AND_BACKWARD = 3.0
"""Forward passes that one forward and backward pass costs, as is usual to reckon."""

DANCE_FRACTION = 0.6
"""Share of the stochastic steps that DanceGRPO trains."""

PHASES = {"sample": ("sampling and scoring", 1), "update": ("update", 2)}
"""Timings of the phases, one after the other: key -> (name, colour)."""

KINDS = {
    "model": ("the generator", 1),
    "decode": ("decoding", 3),
    "encode": ("encoding prompts", 4),
    "score_wait": ("waiting for rewards", 5),
}
"""Timings of kinds of work, which lie within the phases: key -> (name, colour)."""


def cost_panels(run: Run) -> list[str]:
    """Return where the time of an iteration and of the whole run went, and the model calls beside other methods."""
    if not run.train:
        return []
    panels = [_iteration_panel(run), _calls_panel(run), _seconds_panel(run), _run_panel(run)]
    return [panel for panel in panels if panel]


def memory_words(run: Run) -> str:
    """Say how much memory the iterations took; nothing where that was not measured."""
    peaks = [row.figures["peak_memory"] for row in run.train if "peak_memory" in row.figures]
    if not peaks:
        return ""
    what = "on a GPU its tensors, on a CPU the whole process with all that it holds"
    return f"Most memory in use during an iteration: {gib(max(peaks))} ({what})."


def _seconds_panel(run: Run) -> str:
    def draw(clock: Clock) -> Chart:
        points = [(clock.of(row), row.seconds) for row in run.train]
        return Chart(
            title="Time per iteration",
            x_label=clock.label,
            y_label="seconds",
            series=curve(points, "seconds", TRAINING),
            x_range=(0.0, clock.end),
            whole_x=clock.whole,
            from_zero=True,
        )

    typical = median(row.seconds for row in run.train)
    return panel(run, f"Median {seconds(typical)}; evaluations and saving are not included.", draw)


def _iteration_panel(run: Run) -> str:
    """Return the mean iteration by phase and by kind of work, as stacked bars."""
    total = mean_of([row.seconds for row in run.train])
    bars = "".join(_timing_bar(run, names, total) for names in (PHASES, KINDS))
    return figure(f"A mean iteration, {seconds(total)}", "By phase, and by kind of work.", bars) if bars else ""


def _timing_bar(run: Run, names: Mapping[str, tuple[str, int]], total: float) -> str:
    parts: list[Part] = []
    for key, (name, color) in names.items():
        mean = math.fsum(row.timing.get(key, 0.0) for row in run.train) / len(run.train)
        if mean > 0:
            parts.append(Part(name=name, value=mean, text=seconds(mean), color=color))
    if not parts:
        return ""
    rest = total - math.fsum(part.value for part in parts)
    if rest > 0:
        parts.append(Part(name="other", value=rest, text=seconds(rest), color=6))
    return _bar_with_table(parts, max(total, total - rest))


def _run_panel(run: Run) -> str:
    """Return the whole run as a stacked bar: iterations, evaluations, and the rest."""
    iterations = math.fsum(row.seconds for row in run.train)
    evaluations = math.fsum(row.seconds for row in run.evals)
    rest = run.seconds - iterations - evaluations
    parts = [
        Part(name="iterations", value=iterations, text=duration(iterations), color=1),
        Part(name="evaluations", value=evaluations, text=duration(evaluations), color=3),
    ]
    if rest > 0.01 * run.seconds:
        parts.append(Part(name="loading, saving, the rest", value=rest, text=duration(rest), color=6))
    total = max(run.seconds, iterations + evaluations)
    pauses = "Pauses between the sessions are left out." if len(run.sessions) > 1 else ""
    return figure(f"The whole run, {duration(run.seconds)}", pauses, _bar_with_table(parts, total))


def _bar_with_table(parts: Sequence[Part], total: float) -> str:
    rows = "".join(
        f'<tr><th><i class="swatch b{part.color}"></i>{escape(part.name)}</th><td>{escape(part.text)}</td>'
        f"<td>{percent(part.value / total)}</td></tr>"
        for part in parts
    )
    return f'{stacked_bar(parts, total)}<table class="parts">{rows}</table>'


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """Model calls per sample of one method."""

    name: str
    sampling: float
    update: float
    other: float = 0.0
    """Forward passes of an update for what other policies predict: the sampling one, the starting one."""

    @property
    def passes(self) -> float:
        """The cost in forward passes."""
        return self.sampling + self.other + FORWARD_AND_BACKWARD * self.update


def model_calls(run: Run) -> list[Calls]:
    """Return the calls per sample of this run, of it without sharing, and, always and last, of DanceGRPO at its T."""
    methods: list[Calls] = []
    sampling, update = (mean_of([row.calls.get(key, math.nan) for row in run.train]) for key in ("sampling", "update"))
    other = mean_of([row.calls.get("old", 0.0) + row.calls.get("reference", 0.0) for row in run.train])
    if math.isfinite(sampling + update):
        methods.append(Calls(name="this run", sampling=sampling, update=update, other=other))
    unshared = [calls for row in run.train if (calls := _unshared(run, row)) is not None]
    if unshared:
        alone = mean_of([u for _, u in unshared])
        grown = other * alone / update if update else other  # other policies are asked at the states of an update
        methods.append(Calls(name="unshared", sampling=mean_of([s for s, _ in unshared]), update=alone, other=grown))
    steps = num_steps(run)
    trained = math.floor(DANCE_FRACTION * (steps - 1))
    return [*methods, Calls(name="DanceGRPO, same T", sampling=float(steps), update=float(trained))]


def _unshared(run: Run, row: TrainRow) -> tuple[float, float] | None:
    steps, shift = run.setting("rollout.num_steps"), run.setting("rollout.shift")
    if not isinstance(steps, int) or not isinstance(shift, int | float) or row.window.stop > steps - 1:
        return None
    if run.setting("rollout.noise_spread") or run.setting("rollout.kernel") == "ode":
        return None  # nothing is shared between samples that start apart
    tail, head = (_ratio(run.setting(f"rollout.{name}")) for name in ("tail_ratio", "head_ratio"))
    plan = plan_trajectory(num_steps=steps, shift=shift, window=row.window, tail_ratio=tail, head_ratio=head)
    return plan.nfe(1, shared_noise=False), len(row.trained) * _kept(run)


def _kept(run: Run) -> float:
    """Return the share of a group that is updated on, where only its best and worst are."""
    extremes, group = run.setting("advantages.extremes"), run.setting("rollout.group_size")
    return 2 * extremes / group if isinstance(extremes, int) and isinstance(group, int) and extremes else 1.0


def _ratio(setting: object) -> float:
    return setting if isinstance(setting, int | float) and 0 < setting <= 1 else 1.0


def _calls_panel(run: Run) -> str:
    methods = model_calls(run)
    dance = methods[-1]
    longest = max(method.passes for method in methods)
    with_other = any(method.other for method in methods)
    rows: list[str] = []
    for method in methods:
        update = FORWARD_AND_BACKWARD * method.update
        parts = [
            Part(name="sampling", value=method.sampling, text=f"{decimal(method.sampling)} calls", color=1),
            Part(name="update", value=update, text=f"{decimal(method.update)} calls", color=2),
        ]
        if method.other:
            parts.append(Part(name="other", value=method.other, text=f"{decimal(method.other)} calls", color=3))
        relative = f"{method.passes / dance.passes:.2f}" if dance.passes else NONE
        figures = (method.sampling, method.update, *([method.other] if with_other else []), method.passes)
        cells = "".join(f"<td>{decimal(n)}</td>" for n in figures)
        rows.append(
            f"<tr><th>{escape(method.name)}</th>{cells}<td>{relative}</td></tr>"
            f'<tr class="bars"><td colspan="{6 if with_other else 5}">{stacked_bar(parts, longest)}</td></tr>'
        )
    headings = ("", "sampling", "update", *(["other"] if with_other else []), "forward passes", "of DanceGRPO")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    table = f'<table class="calls"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    unshared = any(method.name == "unshared" for method in methods)
    steps, share = num_steps(run), f"{DANCE_FRACTION} {TIMES} {num_steps(run) - 1}"
    caption = (
        f"An update call is a forward and a backward pass, reckoned as {FORWARD_AND_BACKWARD:.0f} forward passes. "
        f"DanceGRPO at this run's number of steps: {steps} sampled, {dance.update:.0f} = ⌊{share}⌋ trained."
        + (" Unshared: every sample computes the steps up to the window's first for itself." if unshared else "")
        + (" Other: forward passes for what the sampling or the starting policy predicts." if with_other else "")
    )
    return figure("Model calls per sample", caption, table)
