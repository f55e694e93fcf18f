"""What a comparison shows while it runs."""

import io
from typing import Any

import pytest
from rich.console import Console

from mixgrpo.report.alarms import Standing, Watch
from mixgrpo.report.summary import Estimate
from mixgrpo.train.compare_console import CompareConsole, Runner


def _train(iteration: int, seconds: float) -> dict[str, Any]:
    rewards = {"ocr": {"mean": 0.5 + iteration / 100}, "colors": {"mean": None}}
    return {"kind": "train", "iteration": iteration, "seconds": seconds, "rewards": rewards}


def _eval(iteration: int) -> dict[str, Any]:
    return {
        "kind": "eval",
        "iteration": iteration,
        "seconds": 5.0,
        "rewards": {"ocr": 0.8},
        "details": {"ocr/exact": 0.4},
    }


def _show(*, terminal: bool, width: int = 120) -> tuple[str, CompareConsole]:
    stream, times = io.StringIO(), iter(range(10_000))
    console = Console(file=stream, force_terminal=terminal, width=width, color_system=None, highlight=False)
    runners = {
        "a": Runner("Method A", iterations=10, every=5, done={0: 0, 1: 0}, ended=set()),
        "b": Runner("Method B", iterations=10, every=5, done={0: 10, 1: 0}, ended={0}),
    }
    display = CompareConsole(runners, budget=600.0, console=console, clock=lambda: float(next(times)))
    sink = display.sink("a", 0)
    sink.record({"kind": "start", "resumed_from": 6})
    sink.record(_train(6, 2.0))
    sink.record(_train(7, 4.0))
    sink.record(_eval(8))
    sink.progress("updating", 3, 20)
    other = display.sink("b", 1)
    other.record({"kind": "start", "resumed_from": None})
    other.record({"kind": "end", "reason": "stopped: collapsed", "iteration": 3})
    display.close()
    return stream.getvalue(), display


def test_plain_lines_without_a_terminal() -> None:
    text, _ = _show(terminal=False)
    assert text.splitlines() == [
        # a: 3 + 10 iterations of 2 s left; b, which has not begun: 10 as long as those of a; no evaluation timed yet
        "seed 0  Method A  iteration 7/10  ocr 0.560  colors -  2.0 s  46 s left",
        # 2 + 10 and 10 iterations of 3 s
        "seed 0  Method A  iteration 8/10  ocr 0.570  colors -  4.0 s  1 min 06 s left",
        "seed 0  Method A  evaluation after 8 iterations  ocr 0.800  ocr/exact 0.400  5.0 s",
        "seed 1  Method B  stopped: collapsed after 3 iterations",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_became_of_the_prompts_is_said_once(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None, highlight=False)
    display = CompareConsole({"a": Runner("A", iterations=1, every=1, done={0: 0, 1: 0}, ended=set())}, console=console)
    counts = {"prompts": 3, "empty": 0, "duplicates": 2, "conflicts": 0, "too_long": 0}
    for seed in (0, 1):
        row = {"kind": "start", "prompts": {"training": counts, "heldout": counts, "shared": 1, "token_limit": 8}}
        display.sink("a", seed).record(row)
    display.close()
    assert stream.getvalue().count("  prompts  3 prompts; left out 2 duplicates\n") == 1
    assert stream.getvalue().count("1 of the 3 held-out prompts stands in prompts.train too") == 1


def test_time_left_counts_iterations_and_evaluations_of_what_is_not_at_its_end() -> None:
    _, display = _show(terminal=False)
    # a: 2 and 10 iterations of 3 s, 1 + 1 and 2 + 1 evaluations of 5 s; b is at its end with both seeds
    assert display.seconds_left() == pytest.approx(12 * 3.0 + 5 * 5.0)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_live_display_shows_every_method(width: int) -> None:
    text, _ = _show(terminal=True, width=width)
    assert max(len(line.rstrip()) for line in text.splitlines() if "\x1b" not in line) <= width
    assert "2 of 4 runs" in text
    assert "of this call's time" in text or width < 80
    for part in ("Method A", "seed 0  8/10", "Method B", "3.0 s each"):
        assert part in text
    if width >= 80:
        assert "updating 3/20" in text


def test_a_resumed_comparison_says_an_alarm_once() -> None:
    """It is judged from the first evaluation on, which another call made; what held then already is not said again."""

    def standing(iteration: int, light: float, dark: float) -> Standing:
        rewards = {"light": Estimate(light, 0.01), "dark": Estimate(dark, 0.01)}
        return Standing(iteration, rewards, float("nan"))

    def said(earlier: list[Standing]) -> str:
        stream = io.StringIO()
        runner = Runner(
            "A",
            iterations=10,
            every=5,
            done={0: 5, 1: 0},
            ended=set(),
            watch=Watch(trained=("light",), judges=("dark",), min_diversity=0.0),
            earlier={0: earlier},
        )
        sink = CompareConsole({"a": runner}, console=Console(file=stream, width=400)).sink("a", 0)
        sink.record({"kind": "start", "resumed_from": 10})
        rewards = {"light": 0.9, "dark": 0.1}
        errors = {"light": 0.01, "dark": 0.01}
        row = {"kind": "eval", "iteration": 10, "seconds": 1.0, "rewards": rewards, "details": {}}
        sink.record(row | {"standard_errors": errors})
        return stream.getvalue()

    started, fallen = standing(0, 0.5, 0.5), standing(5, 0.8, 0.2)
    assert "ALARM" not in said([]), "a first evaluation has nothing to be compared with"
    assert said([started]).count("ALARM after 10 iterations") == 1
    assert "ALARM" not in said([started, fallen]), "it was said by the call before"
    assert "ALARM" in said([started, standing(10, 0.9, 0.1)]), "an evaluation that is made again"
