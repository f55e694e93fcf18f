"""The rule on deceived rewards and lost variety, on evaluations made by hand, and what console and report say."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.report.alarms import ALIKE, DISAGREES, Standing, Watch, Watcher, alarms
from mixgrpo.report.health import Level, alarm_notes
from mixgrpo.report.html import render
from mixgrpo.report.read import read_run
from mixgrpo.report.summary import Estimate, summarise
from mixgrpo.report.text import MINUS
from mixgrpo.train.console import ConsoleSink
from report.fake_run import write_rows

MakeRun = Callable[..., Path]
WATCH = Watch(trained=("ocr", "colors"), judges=("tesseract",), min_diversity=0.5)


def standing(iteration: int, ocr: float, tesseract: float, diversity: float = 0.2, error: float = 0.03) -> Standing:
    rewards = {"ocr": ocr, "colors": 0.9, "tesseract": tesseract}
    return Standing(iteration, {name: Estimate(mean, error) for name, mean in rewards.items()}, diversity)


START = standing(0, 0.5, 0.4)
EDGE = 0.03 * math.sqrt(2)
"""The standard error of a change: that of the difference of two independent means of error 0.03."""


@pytest.mark.parametrize(
    ("last", "keys"),
    [
        (standing(10, 0.5, 0.4), []),
        (standing(10, 0.5 + 0.9 * EDGE, 0.2), []),  # the rise is noise
        (standing(10, 0.8, 0.4 - 0.9 * EDGE), []),  # the fall is noise
        (standing(10, 0.5 + 1.1 * EDGE, 0.4 - 1.1 * EDGE), ["judge tesseract"]),
        (standing(10, 0.8, 0.6), []),  # both rise
        (standing(10, 0.2, 0.1), []),  # both fall: that is no deceit
        (standing(10, 0.2, 0.6), []),
        (standing(10, 0.8, 0.1, error=math.nan), []),  # nothing tells a change from chance
        (standing(10, math.nan, 0.1), []),
        (standing(10, 0.8, math.nan), []),
        (standing(10, 0.5, 0.4, diversity=0.101), []),
        (standing(10, 0.5, 0.4, diversity=0.099), ["diversity"]),
        (standing(10, 0.5, 0.4, diversity=math.nan), []),
        (standing(10, 0.8, 0.1, diversity=0.0), ["judge tesseract", "diversity"]),
    ],
)
def test_what_holds_after_an_evaluation(last: Standing, keys: list[str]) -> None:
    assert [alarm.key for alarm in alarms([START, last], WATCH)] == keys
    # what was in between counts for nothing
    assert [alarm.key for alarm in alarms([START, standing(5, 0.1, 0.9, 0.01), last], WATCH)] == keys


def test_without_a_beginning_nothing_can_be_told() -> None:
    bad = standing(10, 0.9, 0.0, 0.0)
    assert not alarms([], WATCH)
    assert not alarms([START], WATCH)
    assert not alarms([standing(5, 0.5, 0.4), bad], WATCH)


def test_what_is_not_watched_raises_nothing() -> None:
    bad = standing(10, 0.9, 0.0, 0.0)
    assert [a.key for a in alarms([START, bad], WATCH._replace(min_diversity=0.0))] == ["judge tesseract"]
    assert [a.key for a in alarms([START, bad], WATCH._replace(judges=()))] == ["diversity"]
    assert [a.key for a in alarms([START, bad], WATCH._replace(trained=("colors",)))] == ["diversity"]


def test_diversity_is_held_against_the_first_that_was_measured() -> None:
    evals = [START._replace(diversity=math.nan), standing(10, 0.5, 0.4, 0.3), standing(20, 0.5, 0.4, 0.14)]
    (found,) = alarms(evals, WATCH)
    assert "differ by 0.140, 0.47 of the 0.300 at iteration 10 (guard.min_diversity = 0.5)" in found.text


def test_an_alarm_has_numbers_and_says_what_to_do() -> None:
    (found,) = alarms([START, standing(10, 0.8, 0.1)], WATCH)
    assert found.title == DISAGREES
    assert found.text.startswith("ocr (0.500 → 0.800) rose on the held-out prompts, but tesseract (0.400 → 0.100), ")
    assert f"ocr +0.300 ± 0.042, tesseract {MINUS}0.300 ± 0.042." in found.text
    for part in ("Look at the pictures", "optim.lr", "weight", "add tesseract as a reward", "loss.kl_weight"):
        assert part in found.text


def test_beginning_and_end_are_said_once() -> None:
    watcher = Watcher(WATCH)
    good, bad = (0.6, 0.5), (0.8, 0.1)
    said = [watcher.take(standing(10 * i, *one)) for i, one in enumerate([(0.5, 0.4), good, bad, bad, good, bad])]
    assert [[line.split(":")[0] for line in lines] for lines in said] == [
        [],
        [],
        ["ALARM after 20 iterations"],
        [],
        ["alarm ended after 40 iterations"],
        ["ALARM after 50 iterations"],
    ]


def test_a_resumed_run_is_held_against_its_first_start_and_repeats_nothing() -> None:
    earlier = [START, standing(10, 0.8, 0.1), standing(20, 0.5, 0.4)]
    watcher = Watcher(WATCH, earlier)
    watcher.resume(20)  # the evaluation at 20 is made again
    assert watcher.take(standing(20, 0.8, 0.1)) == []
    assert watcher.take(standing(30, 0.5, 0.4)) == [f"alarm ended after 30 iterations: {DISAGREES}"]


def row(iteration: int, tesseract: float, diversity: float | None, **errors: float) -> dict[str, Any]:
    rewards = {"ocr": 0.5 + iteration / 50, "colors": 0.9, "tesseract": tesseract}
    found = {"kind": "eval", "iteration": iteration, "seconds": 5.0, "rewards": rewards, "details": {}}
    return found | {"standard_errors": dict.fromkeys(rewards, 0.03) | errors, "diversity": diversity}


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_says_when_an_alarm_begins_and_when_it_ends(terminal: bool) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(_judged(), Console(file=stream, force_terminal=terminal, width=80, color_system=None))
    sink.record({"kind": "start", "resumed_from": None})
    for number, (tesseract, diversity) in enumerate([(0.4, 0.2), (0.1, 0.2), (0.1, 0.05), (0.5, 0.2), (0.5, None)]):
        sink.record(row(10 * number, tesseract, diversity))
    sink.close()
    text = stream.getvalue()
    assert text.count("ALARM") == 2
    assert text.count(f"ALARM after 10 iterations: {DISAGREES}. ocr (0.500 → 0.700) rose") == 1
    assert text.count(f"ALARM after 20 iterations: {ALIKE}. Two images of a prompt differ by 0.050, 0.25 of") == 1
    assert f"alarm ended after 30 iterations: {DISAGREES}" in text
    assert f"alarm ended after 30 iterations: {ALIKE}" in text
    if not terminal:
        assert "tesseract 0.400  diversity 0.200  5.0 s" in text
        assert "tesseract 0.500  diversity -  5.0 s" in text


def _judged() -> Config:
    config = load_config("flux-nano", [])
    judge = config.rewards[0].model_copy(update={"name": "tesseract", "weight": 0.0, "evaluation_only": True})
    return config.model_copy(update={"rewards": (*config.rewards, judge)})


def told(run: Path) -> list[tuple[Level, str, str]]:
    read = read_run(run)
    return [tuple(note) for note in alarm_notes(read, summarise(read))]


def give(run: Path, judge: dict[int, float], *, diversity: dict[int, float] | None = None, best: int = 60) -> Path:
    """Set what the judge says after some iterations, and which evaluation is the best."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for one in rows:
        if one["kind"] == "eval":
            one["rewards"] |= {"ocr": 0.573 + 0.002 * one["iteration"], "tesseract": judge.get(one["iteration"], 0.6)}
            one["best"] = one["iteration"] == best
            if diversity is not None:
                one["diversity"] = diversity.get(one["iteration"], 0.2)
    write_rows(run, rows)
    return run


def test_the_report_of_a_deceived_reward_says_so_at_the_top(make_run: MakeRun) -> None:
    run = give(make_run(judge=0.0), {50: 0.4, 60: 0.3})
    ((level, title, text),) = told(run)
    assert (level, title) == (Level.ALARM, DISAGREES)
    assert "ocr (0.573 → 0.693)" in text
    assert "tesseract (0.600 → 0.300)" in text
    assert text.endswith("It held after 2 of 7 evaluations, first at iteration 50, and holds after the last.")
    page = render(read_run(run))
    top = page[: page.index('id="pictures"')]
    assert top.index(DISAGREES) < top.index('class="cards"')
    assert page.count("<small>alarm</small>") == 2


def test_an_alarm_that_ended_is_a_note_unless_the_best_weights_are_of_then(make_run: MakeRun) -> None:
    ((level, title, text),) = told(give(make_run("ended", judge=0.0), {20: 0.3, 30: 0.3}))
    assert (level, title) == (Level.NOTE, f"{DISAGREES}: it did for a while")
    assert text.startswith("It held after 2 of 7 evaluations, first at iteration 20, and no more from iteration 40 on.")
    ((level, title, text),) = told(give(make_run("best", judge=0.0), {20: 0.3, 30: 0.3}, best=30))
    assert (level, title) == (Level.ALARM, DISAGREES)
    assert "These are the weights of iteration 30, the best." in text


def test_the_report_shows_diversity_where_it_was_measured(make_run: MakeRun) -> None:
    plain = make_run("plain", judge=0.0)
    assert "<h3>Diversity</h3>" not in render(read_run(plain))
    run = give(make_run("measured", judge=0.0), {}, diversity={50: 0.09, 60: 0.05})
    assert told(run) == [], "a run from before there was the setting"
    settings = json.loads((run / "resolved.json").read_text())
    settings["guard"]["min_diversity"] = 0.5
    (run / "resolved.json").write_text(json.dumps(settings))
    ((level, title, text),) = told(run)
    assert (level, title) == (Level.ALARM, ALIKE)
    assert "0.25 of the 0.200 at iteration 0" in text
    page = render(read_run(run))
    assert "<h3>Diversity</h3>" in page
    assert "alarm below" in page
    assert "<th>diversity</th>" in page
