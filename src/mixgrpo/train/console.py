"""What a run shows while it runs: a live display in a terminal, plain lines where there is none. No torch."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixgrpo.config.schema import Config
from mixgrpo.data.sets import prompt_lines
from mixgrpo.report.alarms import Standing, Watcher, standing_of_json, watch_of_config

_UNITS = {
    "encoding prompts": "prompts",
    "sampling": "prompts",
    "updating": "micro-batches",
    "evaluating": "images",
    "training sampler": "images",
    "diversity": "images",
}
_RECENT = 10
"""Iterations that the time left is estimated from."""


@dataclass(slots=True)
class Progress:
    """What is known about a run at some moment."""

    config: Config
    iteration: int = 0
    """Iterations that are done."""
    window: range | None = None
    rewards: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Means of the iterations seen so far, by reward."""
    evals: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """What the latest iterations took."""
    phase: str = "starting"
    done: int = 0
    total: int = 0
    phase_started: float = 0.0

    def seconds_each(self) -> float:
        """Return the mean of the latest iterations."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else 0.0

    def seconds_left(self) -> float:
        """Estimate from the latest iterations and the latest evaluation."""
        every, iterations = self.config.eval.every, self.config.iterations
        due = range(-(-self.iteration // every) * every, iterations, every)
        evaluation = self.evals[-1]["seconds"] if self.evals else 0.0
        return (iterations - self.iteration) * self.seconds_each() + (len(due) + 1) * evaluation


class ConsoleSink:
    """Shows where a run is: iteration, window, rewards, held-out figures, phase, speed and time left."""

    def __init__(
        self,
        config: Config,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        earlier: Sequence[Standing] = (),
    ) -> None:
        """Show a run of `config` on `console`; the display moves only if that is a terminal.

        `earlier` are the evaluations that a resumed run has behind it.
        """
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._live: Live | None = None
        self._run = Progress(config, phase_started=clock())
        self._watcher = Watcher(watch_of_config(config), earlier)

    def record(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl."""
        match row["kind"]:
            case "start":
                self._run.iteration = row.get("resumed_from") or 0
                self._watcher.resume(self._run.iteration)
                if "prompts" in row:
                    for label, text in prompt_lines(row["prompts"]):
                        self._say(f"  {label:8} {text}")
                if self._console.is_terminal:
                    self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
                    self._live.start()
            case "train":
                self._take_iteration(row)
            case "eval":
                self._run.evals.append(row)
                self._say(_eval_line(row))
                for line in self._watcher.take(standing_of_json(row)):
                    # a live display leaves room for it above itself
                    style = "bold red" if line.startswith("ALARM") else "bold"
                    self._console.print(line, markup=False, soft_wrap=True, style=style)
            case _:
                self._run.phase, self._run.done, self._run.total = row.get("reason", "ended"), 0, 0

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note of how far a phase is."""
        if phase != self._run.phase or done < self._run.done:
            self._run.phase_started = self._clock()
        self._run.phase, self._run.done, self._run.total = phase, done, total

    def close(self) -> None:
        """Leave the last state of the display on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _take_iteration(self, row: Mapping[str, Any]) -> None:
        run = self._run
        run.iteration, run.window = row["iteration"] + 1, range(*row["window"])
        run.seconds.append(row["seconds"])
        latest = {name: figures["mean"] for name, figures in row["rewards"].items()}
        for name, mean in latest.items():
            run.rewards.setdefault(name, []).extend([] if mean is None else [mean])
        means = "  ".join(f"{name} {_figure(mean)}" for name, mean in latest.items())
        self._say(
            f"iteration {run.iteration}/{run.config.iterations}  steps {_span(run.window)}  {means}  "
            f"{row['seconds']:.1f} s  {duration(run.seconds_left())} left"
        )

    def _say(self, line: str) -> None:
        if self._live is None:
            self._console.print(line, markup=False, soft_wrap=True)
            self._console.file.flush()

    def _render(self) -> Table:
        return render(self._run, self._console, self._clock())


def render(run: Progress, console: Console, now: float) -> Table:
    """Draw the display: a row each for the iterations, the window, the present phase and every reward."""
    bar, plain = 24 if console.width >= 100 else 12, not speaks_unicode(console)
    table = Table.grid(padding=(0, 2))
    heldout_only = [name for name in (run.evals[-1]["rewards"] if run.evals else ()) if name not in run.rewards]
    table.add_column(style="dim", no_wrap=True, min_width=max(map(len, ["evaluating", *run.rewards, *heldout_only])))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("iteration", _iteration_line(run, bar))
    if run.window is not None:
        table.add_row("window", _window_line(run.window, run.config.rollout.num_steps, plain=plain))
    table.add_row(run.phase, _phase_line(run, now))
    for name, values in list(run.rewards.items()):
        if values:
            line = _reward_line(list(values), bar, plain=plain)
            table.add_row(name, line.append("  ").append(_heldout(run.evals, name)))
    for name in heldout_only:
        table.add_row(name, _heldout(run.evals, name))
    return table


def _iteration_line(run: Progress, bar: int) -> Table:
    total = run.config.iterations
    left = f"{run.seconds_each():.1f} s each, {duration(run.seconds_left())} left"
    line = Table.grid(padding=(0, 2))
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_row(
        f"{run.iteration}/{total}",
        ProgressBar(total=total, completed=run.iteration, width=bar),
        left if run.seconds else "waiting for the first",
    )
    return line


def _window_line(window: range, num_steps: int, *, plain: bool) -> Text:
    line = Text(f"steps {_span(window)} of {num_steps}  ")
    on, off = ("#", ".") if plain else ("■", "·")
    for step in range(num_steps if num_steps <= 60 else 0):
        line.append(on if step in window else off, style="cyan" if step in window else "dim")
    return line


def _phase_line(run: Progress, now: float) -> str:
    if run.total <= 1:
        return ""
    elapsed = now - run.phase_started
    speed = f"  {run.done / elapsed:.3g}/s" if run.done and elapsed > 0.0 else ""
    return f"{run.done}/{run.total} {_UNITS.get(run.phase, '')}{speed}"


def _reward_line(values: list[float], width: int, *, plain: bool) -> Text:
    line = Text.assemble((f"{_figure(values[-1])} {_arrow(values, plain=plain)}  ", "bold"))
    return line if plain else line.append(sparkline(values, width).ljust(width), style="cyan")


def _heldout(evals: Sequence[Mapping[str, Any]], name: str) -> str:
    if not evals:
        return ""
    first, last = evals[0], evals[-1]
    parts = [f"held-out {_change(first['rewards'], last['rewards'], name)}"]
    details = [key for key in last["details"] if key.startswith(f"{name}/")]
    parts += [f"{key.partition('/')[2]} {_change(first['details'], last['details'], key)}" for key in details]
    return ", ".join(parts)


def _eval_line(row: Mapping[str, Any]) -> str:
    figures = "  ".join(f"{name} {_figure(value)}" for name, value in (row["rewards"] | row["details"]).items())
    if "diversity" in row:
        figures += f"  diversity {_figure(row['diversity'])}"
    best = "  best so far" if row.get("best") else ""
    return f"evaluation after {row['iteration']} iterations  {figures}  {row['seconds']:.1f} s{best}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as a line of at most `width` bars, each the mean of equally many values."""
    bars = "▁▂▃▄▅▆▇█"
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, high = min(means), max(means)
    if high - low < 1e-12:
        return bars[3] * len(means)
    return "".join(bars[round((mean - low) / (high - low) * (len(bars) - 1))] for mean in means)


def duration(seconds: float) -> str:
    """Write a time the way it is said: `45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def speaks_unicode(console: Console) -> bool:
    """Say whether block characters can be written to a console."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def _span(window: range) -> str:
    return f"{window.start}-{window.stop - 1}" if len(window) > 1 else str(window.start)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _change(first: Mapping[str, float], last: Mapping[str, float], key: str) -> str:
    before, after = first.get(key), last.get(key)
    return _figure(after) if first is last else f"{_figure(before)} -> {_figure(after)}"


def _arrow(values: Sequence[float], *, plain: bool) -> str:
    """Point where the latest five values are, seen from the five before them."""
    latest, before = values[-5:], values[-10:-5]
    if not before:
        return " "
    move = sum(latest) / len(latest) - sum(before) / len(before)
    still = abs(move) <= 0.05 * (max(values) - min(values))
    return ("=+-" if plain else "→↑↓")[0 if still else 1 if move > 0 else 2]
