"""Runs a comparison: the methods of a seed take turns in one process, or one run follows the other.

Turns are an iteration each, so that a slow or busy machine slows every method alike. All trainers of a seed are in
memory then, which suits small models; `sequential` holds one at a time.

Several processes may work on one folder: each takes whole groups of runs that take turns, and a group that one of them
is on is left alone by the others.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mixgrpo.config.comparison import Session, Terms, write_session
from mixgrpo.config.schema import Config
from mixgrpo.errors import MixGRPOError, TrainingError
from mixgrpo.locks import lock_of, try_lock
from mixgrpo.report import write_comparison
from mixgrpo.report.comparison import read_comparison, run_folder_of
from mixgrpo.train.clock import Interrupted, StopRequest
from mixgrpo.train.loop import Trainer
from mixgrpo.train.metrics import MetricSink

Reason = Literal["finished", "budget", "interrupted"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that is not at its end."""

    method: str
    seed: int
    config: Config
    folder: Path


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that take turns in one process."""

    name: str
    """The same in every process."""
    entries: tuple[Entry, ...]


class Watcher(Protocol):
    """Something that shows how a comparison goes."""

    def sink(self, method: str, seed: int) -> MetricSink:
        """Return what the run of a method with a seed reports to."""
        ...

    def close(self) -> None:
        """Let go of the terminal."""
        ...


def compare(folder: Path, terms: Terms, configs: Mapping[str, Config], *, session: Session, watcher: Watcher) -> Reason:
    """Run what is left of the comparison in `folder` and keep its results up to date.

    Args:
        folder: the comparison's folder, with its `compare.json`, into which the session is written.
        terms: what is compared.
        configs: each method's settings; its runs differ in the seed only.
        session: this call, its end still open.
        watcher: is told what happens.

    Returns:
        Why the call is over. `finished` it is as well when all that is left is under way in other processes.

    Raises:
        MixGRPOError: when a run cannot start or go on, except that a method whose training collapses only leaves the
            race. Everything else is saved before.
    """
    write_session(folder, session)
    reason = "failed"
    try:
        deadline = None if session.budget_minutes is None else session.begun + 60.0 * session.budget_minutes
        contest = Contest(folder, watcher, deadline)
        outcome = contest.run(groups_of(folder, terms, configs))
        reason = outcome
        return outcome
    finally:
        watcher.close()
        write_session(folder, session.model_copy(update={"ended": time.time(), "reason": reason}))
        _write_results(folder)


def groups_of(folder: Path, terms: Terms, configs: Mapping[str, Config]) -> list[Group]:
    """Return the runs that are not at their end, in the groups that run at the same time."""
    ended = _ended(folder)
    groups: list[Group] = []
    for seed in range(terms.seeds):
        entries = [
            Entry(method, seed, config.model_copy(update={"seed": seed}), run_folder_of(folder, method, seed))
            for method, config in configs.items()
            if (method, seed) not in ended
        ]
        # Whoever is first pays for what only the first call of a process does, so every seed has another first.
        first = seed % len(configs)
        entries = entries[first:] + entries[:first]
        if terms.order == "sequential":
            groups += [Group(f"seed-{seed}-{entry.method}", (entry,)) for entry in entries]
        elif entries:
            groups.append(Group(f"seed-{seed}", tuple(entries)))
    return groups


def _ended(folder: Path) -> set[tuple[str, int]]:
    return {(c.method, c.seed) for c in read_comparison(folder).courses if c.state != "running"}


def _write_results(folder: Path) -> None:
    with lock_of(folder, "results"):
        write_comparison(folder)


@contextmanager
def _claim(folder: Path, group: Group) -> Iterator[list[Entry]]:
    """Keep other processes off a group, and yield what is left of it: nothing while another one is on it."""
    lock = try_lock(folder, group.name)
    if lock is None:
        yield []
        return
    try:
        ended = _ended(folder)
        yield [entry for entry in group.entries if (entry.method, entry.seed) not in ended]
    finally:
        lock.release()


class _Pace:
    """A sink that remembers how long the latest iteration and the latest evaluation took."""

    def __init__(self) -> None:
        self.iteration = 0.0
        self.evaluation = 0.0
        self.evaluations = 0

    def record(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == "train":
            self.iteration = row["seconds"]
        elif row["kind"] == "eval":
            self.evaluation = row["seconds"]
            self.evaluations += 1

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


class _Racer:
    """A trainer and its pace."""

    def __init__(self, entry: Entry, watcher: Watcher, stop: StopRequest) -> None:
        """Start the run, or go on from its last checkpoint."""
        self.pace = _Pace()
        resume = (entry.folder / "checkpoints" / "last.txt").is_file()
        if not resume:  # what was killed before its first checkpoint has nothing to go on from
            shutil.rmtree(entry.folder, ignore_errors=True)
        sinks = [self.pace, watcher.sink(entry.method, entry.seed)]
        self.trainer = Trainer(entry.config, entry.folder, resume=resume, sinks=sinks, stop=stop)
        self.trainer.begin()

    def turn(self) -> bool:
        """Do an iteration, or after the last one what ends a run; return whether the run is at its end."""
        trainer = self.trainer
        try:
            if not trainer.done:
                trainer.advance()
                return False
            trainer.finish()
        except TrainingError as error:
            trainer.save()
            trainer.end(f"stopped: {error}")
        else:
            trainer.end("finished")
        trainer.close()
        return True

    def expected(self) -> float:
        """Return the seconds that the next turn should take, judged by the latest; 0 as long as there was none."""
        trainer = self.trainer
        due = trainer.done or trainer.state.iteration % trainer.config.eval.every == 0
        return self.pace.iteration * (not trainer.done) + self.pace.evaluation * due


class Contest:
    """One call's share of a comparison."""

    def __init__(
        self, folder: Path, watcher: Watcher, deadline: float | None, *, now: Callable[[], float] = time.time
    ) -> None:
        """Prepare; `deadline` is a Unix time, or None for as long as it takes."""
        self._folder, self._watcher, self._deadline, self._now = folder, watcher, deadline, now
        self._stop = StopRequest()
        self._turns = 0

    def run(self, groups: Sequence[Group]) -> Reason:
        """Run group after group until all are at their end, time is over, or somebody asks to stop."""
        with self._stop.listening():
            for group in groups:
                if not self._fits(0.0):
                    return "budget"
                with _claim(self._folder, group) as entries:
                    reason = self._run_group(entries)
                if reason != "finished":
                    return reason
        return "finished"

    def _run_group(self, entries: Sequence[Entry]) -> Reason:
        racers: list[_Racer] = []
        try:
            # One by one, so that those that could be started are left in order if the next one cannot be.
            for entry in entries:
                racers.append(_Racer(entry, self._watcher, self._stop))
            return self._take_turns(racers)
        except (Interrupted, MixGRPOError) as error:
            self._leave(racers)
            if isinstance(error, MixGRPOError):
                raise
            return "interrupted"

    def _take_turns(self, racers: list[_Racer]) -> Reason:
        """Let whoever has done the fewest iterations do the next one; that is taking turns, after a resume too."""
        while racers:
            self._stop.check()
            racer = min(racers, key=lambda one: one.trainer.state.iteration)
            if not self._fits(racer.expected()):
                self._leave(racers)
                return "budget"
            evaluations = racer.pace.evaluations
            ended = racer.turn()
            self._turns += 1
            if ended:
                racers.remove(racer)
            if ended or racer.pace.evaluations > evaluations:
                _write_results(self._folder)
        return "finished"

    def _fits(self, seconds: float) -> bool:
        """Say whether there is time for so much. One turn there always is, so that every call gets somewhere."""
        return not self._turns or self._deadline is None or self._now() + seconds <= self._deadline

    def _leave(self, racers: list[_Racer]) -> None:
        for racer in racers:
            racer.trainer.interrupt()
            racer.trainer.close()
        racers.clear()
