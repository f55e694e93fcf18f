"""A comparison as it runs: turns, interruptions, and the same runs whatever the order."""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixgrpo.config.comparison import Entrant, Order, Session, Terms, read_terms, write_terms
from mixgrpo.config.schema import Config
from mixgrpo.errors import RewardError
from mixgrpo.locks import lock_of
from mixgrpo.report.comparison import read_comparison
from mixgrpo.train.checkpoint import find_checkpoint
from mixgrpo.train.compare import Reason, compare
from mixgrpo.train.loop import train
from mixgrpo.train.metrics import MetricSink

_TIMES = {"time", "seconds", "timing", "peak_memory"}


class Log:
    """A watcher that remembers the order of what happens, and sends SIGINT when asked to."""

    def __init__(self, stop_at: tuple[str, int, str] | None = None) -> None:
        self.events: list[tuple[str, int, str]] = []
        self.closed = 0
        self._stop_at = stop_at

    def sink(self, method: str, seed: int) -> MetricSink:
        return LogSink(self, method, seed)

    def close(self) -> None:
        self.closed += 1

    def see(self, event: tuple[str, int, str]) -> None:
        if event == self._stop_at:
            self._stop_at = None
            signal.raise_signal(signal.SIGINT)

    def turns(self) -> list[tuple[str, int]]:
        return [(method, seed) for method, seed, kind in self.events if kind == "train"]


class LogSink:
    def __init__(self, log: Log, method: str, seed: int) -> None:
        self._log, self._method, self._seed = log, method, seed

    def record(self, row: Mapping[str, Any]) -> None:
        self._log.events.append((self._method, self._seed, row["kind"]))

    def progress(self, phase: str, done: int, total: int) -> None:
        self._log.see((self._method, self._seed, phase))

    def close(self) -> None: ...


class Dark:
    """Scores that fall to nothing after some images, as a collapsed reward's do, or that fail."""

    name = "dark"

    def __init__(self, fault: str, after: int) -> None:
        self._fault, self._left = fault, after

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self._left -= len(images)
        if self._fault == "fail" and self._left < 0:
            return torch.full((len(images),), torch.nan)
        return images.mean((1, 2, 3)) * (1.0 if self._left >= 0 else 1e-3)


def make_dark(fault: str, after: int) -> Dark:
    return Dark(fault, after)


@pytest.fixture
def configs(make_config: Callable[..., Config]) -> dict[str, Config]:
    """Two methods on the tiny model."""
    shared: dict[str, Any] = {"iterations": 3, "eval": {"training_sampler": True}}
    return {
        "sliding": make_config(**shared),
        "all": make_config(**shared, window={"type": "all", "size": None, "interval": None}),
    }


def make_terms(configs: Mapping[str, Config], *, seeds: int = 1, order: Order = "interleaved") -> Terms:
    return Terms(
        model="tiny",
        methods=tuple(Entrant(name=name, title=name) for name in configs),
        seeds=seeds,
        order=order,
        target=next(iter(configs)),
    )


def run(
    folder: Path,
    configs: Mapping[str, Config],
    *,
    budget: float | None = None,
    log: Log | None = None,
    seeds: int = 1,
    order: Order = "interleaved",
) -> Reason:
    """Start a comparison, or go on with the one that is there."""
    there = (folder / "compare.json").exists()
    terms = read_terms(folder) if there else make_terms(configs, seeds=seeds, order=order)
    if not there:
        write_terms(folder, terms)
    session = Session(begun=time.time(), command="compare", budget_minutes=budget)
    return compare(folder, terms, configs, session=session, watcher=log or Log())


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] in ("train", "eval")]
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]


def weights_of(run: Path) -> dict[str, Tensor]:
    folder = find_checkpoint(run, "last")
    return {
        f"{file.name}:{key}": tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()
    }


def assert_same(left: Path, right: Path) -> None:
    expected, found = weights_of(left), weights_of(right)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert rows_of(left) == rows_of(right)


def test_methods_take_turns_seed_by_seed_each_seed_with_another_first(
    tmp_path: Path, configs: dict[str, Config]
) -> None:
    log = Log()
    assert run(tmp_path / "out", configs, seeds=2, log=log) == "finished"
    assert log.turns() == [("sliding", 0), ("all", 0)] * 3 + [("all", 1), ("sliding", 1)] * 3
    assert log.closed == 1
    for method in configs:
        for seed in (0, 1):
            folder = tmp_path / "out" / method / f"seed-{seed}"
            assert json.loads((folder / "resolved.json").read_text())["seed"] == seed
            kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
            assert kinds == ["start", "eval", "train", "train", "eval", "train", "eval", "end"]
            assert (folder / "report.html").is_file()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["complete"]
    assert [method["finished"] for method in results["methods"]] == [2, 2]
    assert results["methods"][0]["gap_after"]["weighted sum"]["gap"]["runs"] == 2
    assert results["methods"][0]["cost"]["calls"]["update"] > 0
    (session,) = read_terms(tmp_path / "out").sessions
    assert session.reason == "finished"
    assert session.ended is not None


def test_runs_of_a_comparison_are_the_runs_of_train_whatever_the_order(
    tmp_path: Path, configs: dict[str, Config]
) -> None:
    log = Log()
    assert run(tmp_path / "turns", configs) == "finished"
    assert run(tmp_path / "rows", configs, order="sequential", log=log) == "finished"
    assert log.turns() == [("sliding", 0)] * 3 + [("all", 0)] * 3
    for method, config in configs.items():
        train(config, tmp_path / method)
        for order in ("turns", "rows"):
            assert_same(tmp_path / method, tmp_path / order / method / "seed-0")


def test_a_comparison_of_many_short_calls_equals_one_that_was_never_stopped(
    tmp_path: Path, configs: dict[str, Config]
) -> None:
    assert run(tmp_path / "whole", configs) == "finished"
    log, reasons = Log(), list[str]()
    while not reasons or reasons[-1] != "finished":
        # No time at all: every call does one turn, so that it gets somewhere, and stops.
        reasons.append(run(tmp_path / "parts", configs, budget=1e-9, log=log))
        assert len(log.turns()) <= len(reasons)
        assert (tmp_path / "parts" / "index.html").is_file()
    # three iterations and an end of two methods
    assert reasons == ["budget"] * 7 + ["finished"]
    assert log.turns() == [("sliding", 0), ("all", 0)] * 3
    for method in configs:
        assert_same(tmp_path / "whole" / method / "seed-0", tmp_path / "parts" / method / "seed-0")
    sessions = read_terms(tmp_path / "parts").sessions
    assert [session.reason for session in sessions] == reasons


@pytest.mark.parametrize("phase", ["sampling", "updating", "evaluating", "training sampler"])
def test_an_interrupted_comparison_goes_on_where_it_was(phase: str, tmp_path: Path, configs: dict[str, Config]) -> None:
    assert run(tmp_path / "whole", configs) == "finished"
    log = Log(stop_at=("all", 0, phase))
    assert run(tmp_path / "parts", configs, log=log) == "interrupted"
    for method in configs:
        last = (tmp_path / "parts" / method / "seed-0" / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["reason"] == "interrupted"
    assert not json.loads((tmp_path / "parts" / "results.json").read_text())["complete"]
    assert run(tmp_path / "parts", configs) == "finished"
    for method in configs:
        assert_same(tmp_path / "whole" / method / "seed-0", tmp_path / "parts" / method / "seed-0")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(
    tmp_path: Path, configs: dict[str, Config]
) -> None:
    folder = tmp_path / "out"
    killed = folder / "all" / "seed-0"
    killed.mkdir(parents=True)
    (killed / "metrics.jsonl").write_text('{"kind": "start", "time": 1.0}\n')
    (killed / "resolved.json").write_text("{}")
    assert run(folder, configs) == "finished"
    assert len(rows_of(killed)) == 6


def test_a_finished_comparison_runs_nothing_again(tmp_path: Path, configs: dict[str, Config]) -> None:
    assert run(tmp_path, configs) == "finished"
    log = Log()
    assert run(tmp_path, configs, log=log) == "finished"
    assert not log.events


@pytest.mark.parametrize(("order", "lock"), [("interleaved", "seed-0"), ("sequential", "seed-0-sliding")])
def test_runs_that_another_process_is_on_are_left_to_it(
    order: Order, lock: str, tmp_path: Path, configs: dict[str, Config]
) -> None:
    log = Log()
    with lock_of(tmp_path, lock):
        assert run(tmp_path, configs, seeds=2, order=order, log=log) == "finished"
    left = {("sliding", 0), ("all", 0)} if order == "interleaved" else {("sliding", 0)}
    assert {*log.turns()} == {("sliding", 0), ("all", 0), ("sliding", 1), ("all", 1)} - left
    log = Log()
    assert run(tmp_path, configs, log=log) == "finished"
    assert {*log.turns()} == left


def test_two_calls_share_the_seeds_and_each_run_happens_once(tmp_path: Path, configs: dict[str, Config]) -> None:
    second = Log()

    class Calling(Log):
        """Makes the second call in the middle of the first."""

        def see(self, event: tuple[str, int, str]) -> None:
            if self.turns() and not second.events:
                assert run(tmp_path, configs, log=second) == "finished"

    first = Calling()
    assert run(tmp_path, configs, seeds=2, log=first) == "finished"
    assert {seed for _, seed, _ in first.events} == {0}
    assert {seed for _, seed, _ in second.events} == {1}
    sessions = read_terms(tmp_path).sessions
    assert [session.reason for session in sessions] == ["finished", "finished"]
    assert sessions[0].begun < sessions[1].begun
    assert all(course.state == "finished" for course in read_comparison(tmp_path).courses)


def _faulty(
    configs: Mapping[str, Config], make_config: Callable[..., Config], fault: str, after: int
) -> dict[str, Config]:
    reward = {"name": "dark", "use": f"{__name__}:make_dark", "options": {"fault": fault, "after": after}}
    return {
        "sliding": make_config(iterations=24, rewards=[reward], eval={"every": 30, "num_prompts": 1, "num_steps": 1}),
        "all": configs["all"],
    }


def test_a_method_that_collapses_leaves_the_race_and_the_others_go_on(
    tmp_path: Path, configs: dict[str, Config], make_config: Callable[..., Config]
) -> None:
    # one image of the evaluation and ten iterations of eight as they should be, then next to nothing
    faulty = _faulty(configs, make_config, "fall", after=81)
    assert run(tmp_path / "out", faulty) == "finished"
    last = json.loads((tmp_path / "out" / "sliding" / "seed-0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["reason"].startswith("stopped: ")
    assert last["iteration"] < 24
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(method["finished"], method["stopped"]) for method in results["methods"]] == [(0, 1), (1, 0)]
    assert results["complete"]
    log = Log()
    assert run(tmp_path / "out", faulty, log=log) == "finished"
    assert not log.events


def test_a_reward_that_fails_ends_the_call_with_all_runs_saved(
    tmp_path: Path, configs: dict[str, Config], make_config: Callable[..., Config]
) -> None:
    faulty = _faulty(configs, make_config, "fail", after=9)
    with pytest.raises(RewardError, match="dark"):
        run(tmp_path / "out", faulty)
    for method in faulty:
        last = (tmp_path / "out" / method / "seed-0" / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["reason"] == "interrupted"
    assert read_terms(tmp_path / "out").sessions[-1].reason == "failed"
    assert (tmp_path / "out" / "index.html").is_file()
