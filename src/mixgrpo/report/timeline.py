"""Which denoising steps a run trained, and when: the window's way through the trajectory."""

import math
from collections.abc import Callable, Sequence

from mixgrpo.report.charts import HeatMap, heat_map
from mixgrpo.report.curves import TRAINING, figure
from mixgrpo.report.read import Run
from mixgrpo.report.rows import TrainRow
from mixgrpo.report.summary import mean_of
from mixgrpo.report.text import decimal, listing

MAX_COLUMNS = 150
"""Columns of a heat-map; longer runs put several iterations into one."""


_MEANING = {
    False: "Dark where a denoising step was stochastic and updated.",
    True: "Dark where a denoising step was updated; none was stochastic.",
}

Value = Callable[[TrainRow, int], float | None]
"""What a cell shows for a step of an iteration; None where the step was not trained."""


def window_panels(run: Run) -> list[str]:
    """Return the heat-maps of steps by iterations."""
    if not run.train:
        return []
    title = "Trained steps"
    cells = _cells(run, lambda row, step: float(step in row.trained))
    shown = [[value or None for value in row] for row in cells]
    panels = [figure(title, _MEANING[run.setting("rollout.kernel") == "ode"], _map(run, title, shown))]
    for key, title, caption, zero in (
        ("clip_fraction", "Clip fraction by step", "Share of a step's ratios that were clipped", 0.0),
        ("ratio_mean", "Ratio by step", "Distance of a step's mean ratio from 1", 1.0),
    ):
        cells = _cells(run, _step_figure(key, zero))
        peak = max((value for row in cells for value in row if value is not None), default=0.0)
        if peak > 0:
            # A trained step with the value 0 must still be told from one that was not trained.
            shown = [[None if value is None else 0.12 + 0.88 * value / peak for value in row] for row in cells]
            scale = f'<span class="scale"><i></i>0 to {decimal(peak)}</span>'
            panels.append(figure(title, f"{caption} {scale}", _map(run, title, shown)))
    return panels


def _step_figure(key: str, zero: float) -> Value:
    def value(row: TrainRow, step: int) -> float | None:
        number = row.steps.get(step, {}).get(key, math.nan)
        return abs(number - zero) if math.isfinite(number) else None

    return value


def _columns(run: Run) -> list[range]:
    first, last = run.train[0].iteration, run.train[-1].iteration
    size = math.ceil((last + 1 - first) / MAX_COLUMNS)
    return [range(start, start + size) for start in range(first, last + 1, size)]


def _cells(run: Run, value: Value) -> list[list[float | None]]:
    """Return [step][column]: the mean of `value` over the column's iterations."""
    rows = {row.iteration: row for row in run.train}
    columns = [[rows[iteration] for iteration in column if iteration in rows] for column in _columns(run)]
    return [[_mean([value(row, step) for row in column]) for column in columns] for step in range(num_steps(run))]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return mean_of(present) if present else None


def _map(run: Run, title: str, cells: Sequence[Sequence[float | None]]) -> str:
    columns = _columns(run)
    return heat_map(HeatMap(title=title, cells=cells, x_range=(columns[0].start, columns[-1].stop), color=TRAINING))


def num_steps(run: Run) -> int:
    """Return the denoising steps T of the run."""
    configured = run.setting("rollout.num_steps")
    highest = max((row.window.stop for row in run.train), default=0) + 1
    return max(configured, highest) if isinstance(configured, int) else highest


def window_words(run: Run) -> str:
    """Say which steps the run trained, and which it never did."""
    if not run.train:
        return ""
    steps = num_steps(run)
    trained = {step: sum(step in row.trained for row in run.train) for step in range(steps)}
    never = [str(step) for step in range(steps - 1) if not trained[step]]
    size = mean_of([float(len(row.trained)) for row in run.train])
    words = f"{decimal(size)} of {steps} denoising steps were trained in an iteration (on average)."
    if len({len(row.trained) for row in run.train}) == 1:
        words = f"{int(size)} of {steps} denoising steps were trained in every iteration."
    if never:
        verb = "was" if len(never) == 1 else "were"
        words += f" {'Step' if len(never) == 1 else 'Steps'} {_spans(never)} {verb} never trained."
    return f"{words} The last step, {steps - 1}, lands on the picture and is never stochastic."


def _spans(numbers: Sequence[str]) -> str:
    """Return "0 to 3 and 8" for 0, 1, 2, 3, 8."""
    spans: list[list[int]] = []
    for number in map(int, numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return listing([str(s[0]) if len(s) == 1 else f"{s[0]} to {s[-1]}" for s in spans])
