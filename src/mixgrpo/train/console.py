"""What a run shows while it runs: a live display in a terminal, plain lines where there is none. No torch."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixgrpo.config.schema import Config

_UNITS = {"sampling": "prompts", "updating": "micro-batches", "evaluating": "images"}
_RECENT = 10
"""Iterations that the time left is estimated from."""


class ConsoleSink:
    """Shows where a run is: iteration, window, rewards, held-out figures, phase, speed and time left."""

    def __init__(
        self, config: Config, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show a run of `config` on `console`; the display moves only if that is a terminal."""
        self._config = config
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._live: Live | None = None
        self._iteration = 0
        self._window: range | None = None
        self._rewards: dict[str, list[float]] = {}
        self._evals: list[Mapping[str, Any]] = []
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._phase, self._done, self._total, self._phase_started = "starting", 0, 0, clock()

    def record(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl."""
        match row["kind"]:
            case "start":
                self._iteration = row.get("resumed_from") or 0
                if self._console.is_terminal:
                    self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
                    self._live.start()
            case "train":
                self._take_iteration(row)
            case "eval":
                self._evals.append(row)
                self._say(self._eval_line(row))
            case _:
                self._phase, self._done, self._total = row.get("reason", "ended"), 0, 0

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note of how far a phase is."""
        if phase != self._phase or done < self._done:
            self._phase_started = self._clock()
        self._phase, self._done, self._total = phase, done, total

    def close(self) -> None:
        """Leave the last state of the display on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _take_iteration(self, row: Mapping[str, Any]) -> None:
        self._iteration = row["iteration"] + 1
        self._window = range(*row["window"])
        self._seconds.append(row["seconds"])
        latest = {name: figures["mean"] for name, figures in row["rewards"].items()}
        for name, mean in latest.items():
            self._rewards.setdefault(name, []).extend([] if mean is None else [mean])
        means = "  ".join(f"{name} {_figure(mean)}" for name, mean in latest.items())
        self._say(
            f"iteration {self._iteration}/{self._config.iterations}  steps {_span(self._window)}  {means}  "
            f"{row['seconds']:.1f} s  {duration(self._time_left())} left"
        )

    def _say(self, line: str) -> None:
        if self._live is None:
            self._console.print(line, markup=False, soft_wrap=True)
            self._console.file.flush()

    def _eval_line(self, row: Mapping[str, Any]) -> str:
        figures = "  ".join(f"{name} {_figure(value)}" for name, value in (row["rewards"] | row["details"]).items())
        best = "  best so far" if row.get("best") else ""
        return f"evaluation after {row['iteration']} iterations  {figures}  {row['seconds']:.1f} s{best}"

    def _time_left(self) -> float:
        """Estimate from the latest iterations and the latest evaluation."""
        if not self._seconds:
            return 0.0
        config, left = self._config, self._config.iterations - self._iteration
        first = -(-self._iteration // config.eval.every)
        evaluations = 1 + sum(1 for _ in range(first * config.eval.every, config.iterations, config.eval.every))
        each = self._evals[-1]["seconds"] if self._evals else 0.0
        return left * sum(self._seconds) / len(self._seconds) + evaluations * each

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True, min_width=max(map(len, ["evaluating", *self._rewards])))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row("iteration", self._iteration_line())
        if self._window is not None:
            table.add_row("window", self._window_line(self._window))
        table.add_row(self._phase, self._phase_line())
        for name, values in list(self._rewards.items()):
            if values:
                table.add_row(name, self._reward_line(name, list(values)))
        return table

    def _iteration_line(self) -> Table:
        total = self._config.iterations
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        seconds = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        left = f"{seconds:.1f} s each, {duration(self._time_left())} left" if self._seconds else "waiting for the first"
        line.add_row(
            f"{self._iteration}/{total}",
            ProgressBar(total=total, completed=self._iteration, width=self._bar_width),
            left,
        )
        return line

    def _window_line(self, window: range) -> Text:
        num_steps = self._config.rollout.num_steps
        line = Text(f"steps {_span(window)} of {num_steps}  ")
        if num_steps <= 60:
            on, off = ("■", "·") if speaks_unicode(self._console) else ("#", ".")
            for step in range(num_steps):
                line.append(on if step in window else off, style="cyan" if step in window else "dim")
        return line

    def _phase_line(self) -> Text:
        if self._total <= 1:
            return Text("")
        text = f"{self._done}/{self._total} {_UNITS.get(self._phase, '')}"
        elapsed = self._clock() - self._phase_started
        if self._done and elapsed > 0.0:
            text += f"  {self._done / elapsed:.3g}/s"
        return Text(text)

    @property
    def _bar_width(self) -> int:
        return 24 if self._console.width >= 100 else 12

    def _reward_line(self, name: str, values: list[float]) -> Text:
        plain = not speaks_unicode(self._console)
        width = self._bar_width
        line = Text.assemble((f"{_figure(values[-1])} {_arrow(values, plain=plain)}  ", "bold"))
        if not plain:
            line.append(sparkline(values, width).ljust(width), style="cyan")
        return line.append("  ").append(self._heldout(name))

    def _heldout(self, name: str) -> str:
        if not self._evals:
            return ""
        first, last = self._evals[0], self._evals[-1]
        parts = [f"held-out {_change(first['rewards'], last['rewards'], name)}"]
        details = [key for key in last["details"] if key.startswith(f"{name}/")]
        parts += [f"{key.partition('/')[2]} {_change(first['details'], last['details'], key)}" for key in details]
        return ", ".join(parts)


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
