"""The live display and the metrics file."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import CheckpointError
from mixgrpo.train.console import ConsoleSink, duration, sparkline
from mixgrpo.train.metrics import JsonlSink, Sinks


@pytest.fixture
def config() -> Config:
    return load_config("flux-nano", ["--iterations", "60", "--eval.every", "10"])


def _train(iteration: int, **extra: Any) -> dict[str, Any]:
    rewards = {"ocr": {"mean": 0.5 + iteration / 100}, "colors": {"mean": None}}
    return {"kind": "train", "iteration": iteration, "seconds": 2.0, "window": [2, 4], "rewards": rewards, **extra}


def _eval(iteration: int, exact: float = 0.25, *, judge: bool = False) -> dict[str, Any]:
    rewards, details = {"ocr": exact * 2, "colors": 0.9}, {"ocr/exact": exact}
    if judge:
        rewards, details = rewards | {"tesseract": exact + 0.15}, details | {"tesseract/exact": exact - 0.1}
    return {
        "kind": "eval",
        "iteration": iteration,
        "seconds": 5.0,
        "rewards": rewards,
        "details": details,
        "best": True,
    }


def _show(config: Config, *, terminal: bool, width: int = 100, judge: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, color_system=None, highlight=False)
    times = iter(range(10_000))
    sink = ConsoleSink(config, console, clock=lambda: float(next(times)))
    sink.record({"kind": "start", "resumed_from": None})
    sink.progress("evaluating", 0, 256)
    sink.record(_eval(0, judge=judge))
    for iteration in range(12):
        sink.progress("sampling", 10, 10)
        sink.record(_train(iteration))
    sink.record(_eval(10, exact=0.55 if judge else 0.5, judge=judge))
    sink.progress("updating", 0, 20)
    sink.progress("updating", 6, 20)
    sink.close()
    return stream.getvalue()


def test_plain_lines_without_a_terminal(config: Config) -> None:
    lines = _show(config, terminal=False).splitlines()
    assert len(lines) == 14
    assert lines[0] == "evaluation after 0 iterations  ocr 0.500  colors 0.900  ocr/exact 0.250  5.0 s  best so far"
    # 59 iterations of 2 s, and the evaluations at 10, 20, 30, 40, 50 and 60 of 5 s each
    assert lines[1] == "iteration 1/60  steps 2-3  ocr 0.500  colors -  2.0 s  2 min 28 s left"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_live_display_shows_everything_that_matters(config: Config, width: int) -> None:
    last = _show(config, terminal=True, width=width).split("\x1b[2K")[-1]
    assert max(len(line.rstrip()) for line in last.splitlines() if "\x1b" not in line) <= width
    for part in ("12/60", "steps 2-3 of 8", "··■■····", "updating", "6/20 micro-batches", "0.610 ↑", "▁"):
        assert part in last
    if width >= 80:
        assert "held-out 0.500 -> 1.000, exact 0.250 -> 0.500" in last


def test_a_reward_that_only_judges_has_its_line_too(config: Config) -> None:
    last = _show(config, terminal=True, judge=True).split("\x1b[2K")[-1]
    line = next(line for line in last.splitlines() if "tesseract" in line)
    assert line.split(maxsplit=1)[1].strip() == "held-out 0.400 -> 0.700, exact 0.150 -> 0.450"
    assert "tesseract 0.400" in _show(config, terminal=False, judge=True).splitlines()[0]


def test_sparkline_is_bounded_and_follows_the_values() -> None:
    assert sparkline([0.0, 1.0], 10) == "▁█"
    assert sparkline([0.5] * 3, 10) == "▄▄▄"
    assert len(sparkline([float(value) for value in range(1000)], 24)) <= 24


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 185, 7800)] == ["0 s", "59 s", "3 min 05 s", "2 h 10 min"]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_complete_lines_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sinks = Sinks([JsonlSink(path)])
    sinks.record(_train(0, loss=math.nan, steps={"2": {"kl": math.inf}}))
    sinks.progress("sampling", 1, 2)
    assert _rows(path) == [_train(0, loss=None, steps={"2": {"kl": None}})]
    sinks.close()


def test_a_new_run_never_writes_over_an_old_one(tmp_path: Path) -> None:
    JsonlSink(tmp_path / "metrics.jsonl").close()
    with pytest.raises(CheckpointError, match="is there already"):
        JsonlSink(tmp_path / "metrics.jsonl")


def test_resuming_takes_out_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start = {"kind": "start", "resumed_from": None}
    rows = [start, _eval(0), _train(0), _train(1), _eval(2), _train(2), {"kind": "end", "iteration": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tra')
    sink = JsonlSink(path, keep_before=2)
    sink.record({"kind": "start", "resumed_from": 2})
    sink.record(_eval(2))
    sink.close()
    assert _rows(path) == [start, _eval(0), _train(0), _train(1), {"kind": "start", "resumed_from": 2}, _eval(2)]
    JsonlSink(path, keep_before=2).close()
    assert _rows(path) == [start, _eval(0), _train(0), _train(1)]


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    JsonlSink(tmp_path / "metrics.jsonl", keep_before=3).close()
    assert _rows(tmp_path / "metrics.jsonl") == []
