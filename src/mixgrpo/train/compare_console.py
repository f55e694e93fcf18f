"""What a comparison shows while it runs: a live table in a terminal, plain lines where there is none. No torch."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from mixgrpo.data.sets import prompt_lines
from mixgrpo.report.alarms import NOTHING, Standing, Watch, Watcher, standing_of_json
from mixgrpo.train.console import duration

_RECENT = 10
"""Iterations that the time left is estimated from."""


@dataclass(slots=True)
class Runner:
    """A method, as far as it is."""

    title: str
    iterations: int
    """Iterations of a run."""
    every: int
    """Iterations between two evaluations."""
    done: dict[int, int]
    """Seed -> iterations done."""
    ended: set[int]
    """Seeds whose runs are at their end."""
    seed: int = 0
    phase: str = "waiting"
    progress: tuple[int, int] = (0, 0)
    seconds: deque[float] = field(default_factory=lambda: deque[float](maxlen=_RECENT))
    evaluation: float = 0.0
    """Seconds of the latest evaluation."""
    figures: str = ""
    """The latest held-out figures."""
    watch: Watch = NOTHING
    """What the rule on deceived rewards has to know of the method's runs."""
    earlier: Mapping[int, Sequence[Standing]] = field(default_factory=dict[int, Sequence[Standing]])
    """Seed -> the evaluations that its run has behind it."""

    def each(self) -> float:
        """Return the mean of the latest iterations; 0 as long as there is none."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else 0.0

    def left(self, each: float, evaluation: float) -> float:
        """Estimate the seconds that all runs of this method still take."""
        left = [self.iterations - done for seed, done in self.done.items() if seed not in self.ended]
        evaluations = sum(-(-iterations // self.every) + 1 for iterations in left)
        return sum(left) * each + evaluations * evaluation


class CompareConsole:
    """Shows a comparison: every method's run of the present seed, speed and time left."""

    def __init__(
        self,
        runners: Mapping[str, Runner],
        *,
        budget: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show `runners` by method; `budget` is how many seconds there are."""
        self._runners, self._budget, self._clock = runners, budget, clock
        self._console = console or Console(highlight=False)
        self._started = clock()
        self._live: Live | None = None
        self._told_prompts = False

    def sink(self, method: str, seed: int) -> "RunSink":
        """Return what the run of a method with a seed reports to."""
        if self._live is None and self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start()
        return RunSink(self, self._runners[method], seed)

    def close(self) -> None:
        """Leave the last state of the display on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Print a line, unless a live display shows the same."""
        if self._live is None:
            self._console.print(line, markup=False, soft_wrap=True)
            self._console.file.flush()

    def tell_prompts(self, figures: Mapping[str, Any]) -> None:
        """Say once what became of the prompts, which all runs share."""
        if not self._told_prompts:
            self._told_prompts = True
            for label, text in prompt_lines(figures):
                self._console.print(f"  {label:8} {text}", markup=False, soft_wrap=True)

    def seconds_left(self) -> float:
        """Estimate what is left of all runs; a method that has not begun counts as the mean of the others."""
        known = [runner.each() for runner in self._runners.values() if runner.seconds]
        evaluations = [runner.evaluation for runner in self._runners.values() if runner.evaluation]
        mean = sum(known) / len(known) if known else 0.0
        evaluation = sum(evaluations) / len(evaluations) if evaluations else 0.0
        return sum(runner.left(runner.each() or mean, evaluation) for runner in self._runners.values())

    def _render(self) -> Table:
        return render(self._runners, self._console, self._header())

    def _header(self) -> str:
        ended = sum(len(runner.ended) for runner in self._runners.values())
        runs = sum(len(runner.done) for runner in self._runners.values())
        elapsed = self._clock() - self._started
        left = f"about {duration(self.seconds_left())} left" if any(r.seconds for r in self._runners.values()) else ""
        given = f"{duration(max(0.0, self._budget - elapsed))} of this call's time" if self._budget is not None else ""
        return "  ".join(part for part in (f"{ended} of {runs} runs", left, given) if part)


class RunSink:
    """Takes the rows of one run for the display."""

    def __init__(self, display: CompareConsole, runner: Runner, seed: int) -> None:
        self._display, self._runner, self._seed = display, runner, seed
        self._watcher = Watcher(runner.watch, runner.earlier.get(seed, ()))

    def record(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl."""
        runner = self._runner
        match row["kind"]:
            case "start":
                runner.seed, runner.phase = self._seed, "starting"
                runner.done[self._seed] = row.get("resumed_from") or 0
                self._watcher.resume(runner.done[self._seed])
                if "prompts" in row:
                    self._display.tell_prompts(row["prompts"])
            case "train":
                runner.done[self._seed] = row["iteration"] + 1
                runner.seconds.append(row["seconds"])
                means = "  ".join(f"{name} {_figure(figures['mean'])}" for name, figures in row["rewards"].items())
                self._say(
                    f"iteration {row['iteration'] + 1}/{runner.iterations}  {means}  {row['seconds']:.1f} s  "
                    f"{duration(self._display.seconds_left())} left"
                )
                runner.phase = "waiting"
            case "eval":
                figures = row["rewards"] | row["details"]
                runner.figures = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items())
                runner.evaluation = row["seconds"]
                self._say(f"evaluation after {row['iteration']} iterations  {runner.figures}  {row['seconds']:.1f} s")
                for line in self._watcher.take(standing_of_json(row)):
                    self._say(line)
            case _:
                runner.phase = row["reason"]
                if row["reason"] != "interrupted":
                    runner.ended.add(self._seed)
                self._say(f"{row['reason']} after {row['iteration']} iterations")

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note of how far a phase is."""
        self._runner.phase, self._runner.progress = phase, (done, total)

    def close(self) -> None:
        """Do nothing: the display belongs to all runs."""

    def _say(self, text: str) -> None:
        self._display.say(f"seed {self._seed}  {self._runner.title}  {text}")


def render(runners: Mapping[str, Runner], console: Console, header: str) -> Table:
    """Draw the display: what is left, and a row for each method."""
    table = Table.grid(padding=(0, 2))
    bar = 18 if console.width >= 100 else 8 if console.width >= 80 else 0
    for _ in range(4 if bar else 3):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for runner in runners.values():
        done = runner.done.get(runner.seed, 0)
        bars = [ProgressBar(total=runner.iterations, completed=done, width=bar)] if bar else []
        speed = f"{runner.each():.1f} s each" if runner.seconds else ""
        now = _phase(runner) or runner.figures
        table.add_row(runner.title, f"seed {runner.seed}  {done}/{runner.iterations}", *bars, speed, now)
    outer = Table.grid()
    outer.add_column(no_wrap=True, overflow="ellipsis")
    outer.add_row(header)
    outer.add_row(table)
    return outer


def _phase(runner: Runner) -> str:
    done, total = runner.progress
    if runner.phase in ("waiting", "starting", "finished", "interrupted"):
        return ""
    return f"{runner.phase} {done}/{total}" if total > 1 else runner.phase


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
