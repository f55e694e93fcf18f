"""Scores batches in threads, while the caller goes on sampling, and keeps a fault to the samples it concerns.

What becomes of faults (none of them ever turns into a score of 0):
- a reward that raises is asked once more for every image of the batch alone, so that one bad picture does not
  cost the others; an image that raises again is NaN;
- NaN, an infinite score, and a picture with pixels that are not finite are NaN;
- a batch that is not scored within the reward's time-out is NaN as a whole;
- a reward that returns something other than one number per image is wrong as such: `PendingScores.result`
  raises.

Each reward has a thread of its own, so that it is never called twice at the same time, and at most `workers`
of them score at once. Python cannot stop a thread. A call that is overdue is therefore left to itself: its
place goes to another reward, the program's end does not wait for it (the threads are daemons), and what it
returns later is dropped. Until it returns, its reward cannot be called again; batches that wait behind it
fail after the time-out too, and scoring goes on when the call comes back. What no thread can help: a call
that hangs in C code which keeps the interpreter to itself.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.base import Reward, Scores, check_scores, shown
from mixgrpo.rewards.frames import join_scores, mean_over_frames, questions

T = TypeVar("T")

_NOTHING = torch.empty(0)

_GRACE = 1.0
"""Seconds that closing waits for calls in progress, which had better not meet the interpreter's end."""


@dataclass(frozen=True)
class ScoreTable:
    """What all rewards said about one batch of B images or clips. Tensors are float32 on the CPU, shape [B]."""

    values: dict[str, Tensor]
    """Reward -> its scores; NaN = failed."""
    details: dict[str, Tensor]
    """`<reward>/<detail>` -> its figures, NaN where missing; absent when no image of the batch has it."""
    failures: dict[str, list[str]]
    """Reward -> what failed: a message per image, or one for a batch that timed out. An empty list where
    nothing did."""

    @property
    def failed(self) -> dict[str, int]:
        """Reward -> how many images it could not score."""
        return {name: int(values.isnan().sum()) for name, values in self.values.items()}


class PendingScores:
    """Scores that are being worked out."""

    def __init__(self, jobs: "Mapping[str, _Job]") -> None:
        """Take the jobs of one batch by reward; `Scorer.submit` does this."""
        self._jobs = jobs

    def done(self) -> bool:
        """Say whether `result` would return at once."""
        return all(job.outcome.done() for job in self._jobs.values())

    def result(self) -> ScoreTable:
        """Wait for every reward, each no longer than its time-out allows, and return what they said.

        Raises:
            RewardError: A reward did not return one number per image.
        """
        outcomes = {name: job.outcome.result() for name, job in self._jobs.items()}
        return ScoreTable(
            values={name: outcome.scores.values for name, outcome in outcomes.items()},
            details={
                f"{name}/{detail}": figures
                for name, outcome in outcomes.items()
                for detail, figures in outcome.scores.details.items()
            },
            failures={name: outcome.failures for name, outcome in outcomes.items()},
        )


class Scorer:
    """Calls several rewards on batches of images, each reward in a thread of its own.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self, rewards: Mapping[str, Reward], *, timeout: float | Mapping[str, float] = 60.0, workers: int = 2
    ) -> None:
        """Start a thread for each of the rewards, of which at most `workers` score at the same time.

        `timeout` is the seconds that scoring a batch may take: one figure for all rewards, or one for each by
        name. It covers both tries of a batch that raised; waiting for a place does not count.

        Raises:
            ConfigError: A time-out is missing or not positive, or `workers` is less than 1.
        """
        timeouts = timeout if isinstance(timeout, Mapping) else dict.fromkeys(rewards, timeout)
        for name in rewards:
            if not timeouts.get(name, 0) > 0:
                raise ConfigError(f"the reward {name!r} needs a time-out above 0 seconds, got {timeouts.get(name)}")
        if workers < 1:
            raise ConfigError(f"a scorer needs at least 1 worker, got {workers}")
        self._lanes = [_Lane(name, reward, timeouts[name]) for name, reward in rewards.items()]
        self._free_places = workers
        self._closed = False
        self._changed = threading.Condition()  # guards everything above, and the lanes and jobs
        self._threads = [threading.Thread(target=self._serve, args=(lane,), daemon=True) for lane in self._lanes]
        for thread in (*self._threads, threading.Thread(target=self._watch, daemon=True)):
            thread.start()

    def submit(
        self, images: Tensor, prompts: Sequence[str], *, rewards: Collection[str] | None = None
    ) -> PendingScores:
        """Hand over images [B, 3, H, W] in [0, 1] with their B prompts, B at least 1, and return at once.

        They may be clips [B, F, 3, H, W], of which rewards get what `rewards.frames` says. Only the `rewards` of these
        names are asked; None asks all. The images must not be changed until the scores are there.
        """
        if not len(images) == len(prompts) > 0:
            raise ValueError(
                f"got {len(images)} images and {len(prompts)} prompts: there must be as many, at least one"
            )
        asked = [lane for lane in self._lanes if rewards is None or lane.name in rewards]
        if not asked or (rewards is not None and len(asked) < len(set(rewards))):
            raise ValueError(f"asked for the rewards {rewards}, but there are {[lane.name for lane in self._lanes]}")
        with self._changed:
            if self._closed:
                raise RuntimeError("the scorer is closed")
            now = time.monotonic()
            jobs = {lane.name: _Job(images.detach(), list(prompts), now) for lane in asked}
            for lane in asked:
                lane.waiting.append(jobs[lane.name])
            self._changed.notify_all()
        return PendingScores(jobs)

    def close(self) -> None:
        """End the threads: what is waiting fails, and so do calls that take more than another second."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            for lane in self._lanes:
                for job in lane.jobs():
                    job.give_up("the scorer was closed")

    def __enter__(self) -> Self:
        """Return the scorer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the scorer."""
        self.close()

    def _serve(self, lane: "_Lane") -> None:
        """Score a lane's batches one after the other: what the lane's thread does."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (lane.waiting and self._free_places > 0))
                if self._closed:
                    return
                job = lane.running = lane.waiting.popleft()
                job.started = time.monotonic()
                self._free_places -= 1
                self._changed.notify_all()
            answer = _settle(lambda job=job: _score(lane, job))
            with self._changed:
                if not job.outcome.done():
                    job.settle(answer)
                    self._free_places += 1
                lane.running = lane.stuck_since = None
                self._changed.notify_all()

    def _watch(self) -> None:
        """Give up what is overdue: what the scorer's own thread does."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for lane in self._lanes:
                    self._free_places += lane.give_up_overdue(now)
                self._changed.notify_all()
                deadlines = [lane.deadline(job) for lane in self._lanes for job in lane.jobs()]
                nearest = min((deadline for deadline in deadlines if deadline is not None), default=None)
                self._changed.wait(None if nearest is None else nearest - now)


class _Outcome(NamedTuple):
    """What one reward said about one batch, its faults dealt with."""

    scores: Scores
    failures: list[str]


@dataclass(eq=False)
class _Job:
    """One batch for one reward. Changes only under the scorer's condition."""

    images: Tensor
    prompts: list[str]
    submitted: float
    started: float | None = None
    outcome: Future[_Outcome] = field(default_factory=Future)

    def settle(self, answer: Future[_Outcome]) -> None:
        """Take over what the reward's call came to."""
        self._let_go()
        if (error := answer.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(answer.result())

    def give_up(self, reason: str) -> None:
        """Count every image as failed."""
        if not self.outcome.done():
            nothing = torch.full((len(self.prompts),), float("nan"))
            message = f"{reason} ({len(self.prompts)} images not scored)"
            self._let_go()
            self.outcome.set_result(_Outcome(Scores(nothing, {}), [message]))

    def _let_go(self) -> None:
        """Drop the pictures: who waits for the scores keeps the job, and an iteration's clips fill a memory.

        It comes before the outcome is known, for with that the program may end, and a thread must not be inside torch
        at that moment.
        """
        self.images = _NOTHING


@dataclass(eq=False)
class _Lane:
    """One reward, the batches that wait for it, and the one that it is scoring."""

    name: str
    reward: Reward
    timeout: float
    waiting: deque[_Job] = field(default_factory=deque)
    running: _Job | None = None
    stuck_since: float | None = None
    """When the call in progress was given up."""

    def jobs(self) -> Iterator[_Job]:
        """Iterate over the jobs that have no outcome yet."""
        every = (self.running, *self.waiting)
        return (job for job in every if job is not None and not job.outcome.done())

    def deadline(self, job: _Job) -> float | None:
        """Return when a job is overdue; None while it waits for a reward that keeps its time."""
        if job.started is not None:
            return job.started + self.timeout
        return None if self.stuck_since is None else max(job.submitted, self.stuck_since) + self.timeout

    def give_up_overdue(self, now: float) -> int:
        """Fail what is overdue; return how many places (0 or 1) that frees."""
        freed = 0
        for job in [job for job in self.jobs() if (end := self.deadline(job)) is not None and end <= now]:
            job.give_up(f"no answer within {self.timeout:g} s")
            if job is self.running:
                self.stuck_since = now
                freed = 1
            else:
                self.waiting.remove(job)
        return freed


def _score(lane: _Lane, job: _Job) -> _Outcome:
    """Call a reward on a batch and, if that raises, on each of its images."""
    images = job.images  # the job lets go of them when it is given up
    whole = _ask(lane, images, job.prompts)
    if isinstance(whole, Scores):
        return _Outcome(whole, _unscored(whole, job.prompts))
    rows: list[Scores] = []
    failures: list[str] = []
    for image, prompt in zip(images.split(1), job.prompts, strict=True):
        if job.outcome.done():  # given up meanwhile: let the reward go
            break
        alone = _ask(lane, image, [prompt])
        if isinstance(alone, Scores):
            rows.append(alone)
            failures += _unscored(alone, [prompt])
        else:
            rows.append(Scores(torch.tensor([float("nan")]), {}))
            failures.append(f"{type(alone).__name__}: {alone} {shown(prompt)}")
    return _Outcome(join_scores(rows), failures)


def _ask(lane: _Lane, images: Tensor, prompts: list[str]) -> Scores | BaseException:
    """Return what a reward says about images or clips, or what it raised.

    Raises:
        RewardError: It did not return one number per picture.
    """
    rows: list[Scores] = []
    for asked, texts in questions(lane.reward, images, prompts):
        answer = _call(lane.reward, asked, texts)
        if (error := answer.exception()) is not None:
            return error
        scores = check_scores(lane.name, answer.result(), asked)
        if asked.ndim < images.ndim:  # the frames of one clip
            scores = mean_over_frames(scores)
            scores = scores._replace(failures=_unscored(scores, texts[:1]))
        rows.append(scores)
    return rows[0] if len(rows) == 1 else join_scores(rows)


def _unscored(scores: Scores, prompts: Sequence[str]) -> list[str]:
    """Say which images have no score although the reward returned, unless the reward says so itself."""
    if scores.failures:
        return list(scores.failures)
    return [
        f"no finite score {shown(prompt)}"
        for value, prompt in zip(scores.values.tolist(), prompts, strict=True)
        if value != value
    ]


def _call(reward: Reward, images: Tensor, prompts: list[str]) -> "Future[Tensor | Sequence[float] | Scores]":
    with torch.no_grad():  # gradient mode belongs to the thread, so the caller's own does not hold here
        return _settle(lambda: reward(images, prompts))


class _Deliver:
    """A context that hands whatever is raised inside it to a future.

    As an executor's worker does, and for the same reason: a reward is a stranger's code, so anything can come
    out of it, and it must reach whoever asks for the result instead of ending the thread.
    """

    def __init__(self, future: Future) -> None:
        self._future = future

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is not None:
            self._future.set_exception(error)
        return True


def _settle(call: Callable[[], T]) -> Future[T]:
    """Call and return a finished future with the result or the error."""
    future: Future[T] = Future()
    with _Deliver(future):
        future.set_result(call())
    return future
