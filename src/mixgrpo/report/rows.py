"""The rows of `metrics.jsonl` as frozen dataclasses, and the checks that turn one JSON object into one of them.

Two counts meet here: a training row at iteration `i` describes samples of the policy after `i` updates, and an
evaluation at iteration `k` was made after `k` updates. Both therefore stand at the same place of an axis.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mixgrpo.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardStats:
    """One reward over one iteration's samples; NaN where nothing could be scored."""

    mean: float
    std: float
    """Spread over all samples."""
    group_std: float
    """Mean over the groups of the spread within a group, which is what the advantages are made of."""
    advantage_share: float
    """Share of the advantages that the reward makes (`advantage_shares`); NaN where there were none, or unknown."""
    failed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRow:
    """One iteration: sampling, scoring, updating."""

    iteration: int
    time: float
    elapsed: float
    """Seconds of running time since the run began; the pauses between sessions are left out."""
    seconds: float
    window: range
    trained: tuple[int, ...]
    """The steps that were updated: the window, or the part of it that the row lists under "steps"."""
    figures: Mapping[str, float]
    """Everything that is one number: lr, ratio_mean, clip_fraction, …"""
    rewards: Mapping[str, RewardStats]
    details: Mapping[str, float]
    steps: Mapping[int, Mapping[str, float]]
    calls: Mapping[str, float]
    timing: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One evaluation on the held-out prompts, after `iteration` updates."""

    iteration: int
    time: float
    elapsed: float
    seconds: float
    weights: str
    figures: Mapping[str, float]
    """Means of the rewards and of their details ("ocr", "ocr/exact")."""
    errors: Mapping[str, float]
    """Standard errors of the figures; empty when the row does not say."""
    training_figures: Mapping[str, float]
    """The same figures on images drawn as in training, with noise in the window; empty when that was not done."""
    training_errors: Mapping[str, float]
    failed: Mapping[str, float]
    """Pictures that a reward could not score."""
    diversity: float
    """How much the images of a prompt differ; NaN where it was not measured."""
    num_prompts: int
    """How many prompts; 0 when the row does not say."""
    best: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCount:
    """How many prompts a run had of a source."""

    source: str
    prompts: int
    left_out: int
    """Lines of the source that were empty or stood there twice."""
    cut: int
    """How many of the prompts are longer than the text encoder reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One stretch of running, from a start or a resume to the last row before the next."""

    start: float
    stop: float
    resumed_from: int | None
    trained_parameters: int
    """How many numbers are trained; 0 when the row does not say."""
    versions: Mapping[str, str]
    """Versions of what ran, and the machine it ran on."""
    prompts: tuple[PromptCount, ...] = ()
    """Of those that were trained on, and of those held out; nothing when the row does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How the run said it ended."""

    iteration: int
    time: float
    reason: str
    """ "finished", "interrupted", or "stopped: " and why."""

    @property
    def has_stopped(self) -> bool:
        """Whether the run stopped by itself, before its time."""
        return self.reason not in ("finished", "interrupted")

    @property
    def why(self) -> str:
        """Why the run stopped, as a sentence."""
        reason = self.reason.removeprefix("stopped:").strip()
        return f"{reason[:1].upper()}{reason[1:]}{'' if reason.endswith('.') else '.'}"


class JsonRow:
    """A JSON object that knows where it stands, so that a wrong value is reported with file and line."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string, or `default` where the key is missing."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, NaN for null, or `default` where the key is missing."""
        value = self._values.get(key, default)
        if key in self._values and value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number, or `default` where the key is missing."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def optional_integer(self, key: str) -> int | None:
        """Return a whole number, or None where the key is missing or null."""
        return None if self._values.get(key) is None else self.integer(key)

    def flag(self, key: str) -> bool:
        """Return true or false; a missing key is false."""
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def row(self, key: str) -> "JsonRow":
        """Return the object under `key`; a missing key is an empty object."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return JsonRow(value, f'{self.where}, "{key}"')

    def numbers(self) -> dict[str, float]:
        """Return all values of this object, which must be numbers."""
        return {key: self.number(key) for key in self._values}

    def plain_numbers(self, leave_out: frozenset[str]) -> dict[str, float]:
        """Return those values that are numbers, except the keys in `leave_out`."""
        kept = {key: value for key, value in self._values.items() if key not in leave_out}
        return {
            key: float(value)
            for key, value in kept.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def plain_texts(self, leave_out: frozenset[str]) -> dict[str, str]:
        """Return those values that are strings, except the keys in `leave_out`."""
        return {k: v for k, v in self._values.items() if isinstance(v, str) and k not in leave_out}

    def __iter__(self) -> Iterator[str]:
        """Go through the keys in the order of the file."""
        return iter(self._values)

    def span(self, key: str) -> range:
        """Return [start, stop] as a range; a missing key is the empty range."""
        value = self._values.get(key, [0, 0])
        match value:
            case [int(start), int(stop)] if 0 <= start <= stop:
                return range(start, stop)
            case _:
                raise self._wrong(key, "[start, stop]")

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        found = f"is {self._values[key]!r}" if key in self._values else "is missing"
        return CheckpointError(f'{self.where}: "{key}" {found}, but must be {wanted}.')


_NOT_FIGURES = frozenset({"iteration", "time", "seconds"})


def prompt_counts(row: JsonRow) -> tuple[PromptCount, ...]:
    """Read what a row of kind "start" says of the prompts; nothing in logs from before it did."""
    if "prompts" not in row:
        return ()
    return tuple(
        PromptCount(
            source=part.text("source"),
            prompts=part.integer("prompts"),
            left_out=part.integer("empty", 0) + part.integer("duplicates", 0),
            cut=part.integer("too_long", 0),
        )
        for part in (row.row("prompts").row(key) for key in ("training", "heldout"))
    )


def train_row(row: JsonRow, elapsed: float) -> TrainRow:
    """Check a row of kind "train" and return it."""
    rewards, steps = row.row("rewards"), row.row("steps")
    window = row.span("window")
    by_step: dict[int, dict[str, float]] = {}
    for key in steps:
        if not key.isdecimal():
            raise CheckpointError(f"{steps.where}: {key!r} is not the number of a step.")
        by_step[int(key)] = steps.row(key).numbers()
    return TrainRow(
        iteration=row.integer("iteration"),
        time=row.number("time"),
        elapsed=elapsed,
        seconds=row.number("seconds", 0.0),
        window=window,
        trained=tuple(sorted(by_step)) or tuple(window),
        figures=row.plain_numbers(_NOT_FIGURES),
        rewards={name: _reward_stats(rewards.row(name)) for name in rewards},
        details=row.row("details").numbers(),
        steps=by_step,
        calls=row.row("calls").numbers(),
        timing=row.row("timing").numbers(),
    )


def _reward_stats(row: JsonRow) -> RewardStats:
    return RewardStats(
        mean=row.number("mean"),
        std=row.number("std", math.nan),
        group_std=row.number("group_std", math.nan),
        advantage_share=row.number("advantage_share", math.nan),
        failed=row.integer("failed", 0),
    )


def eval_row(row: JsonRow, elapsed: float) -> EvalRow:
    """Check a row of kind "eval" and return it."""
    training = row.row("training_sampler")
    return EvalRow(
        iteration=row.integer("iteration"),
        time=row.number("time"),
        elapsed=elapsed,
        seconds=row.number("seconds", 0.0),
        weights=row.text("weights", "policy"),
        figures={**row.row("rewards").numbers(), **row.row("details").numbers()},
        errors=row.row("standard_errors").numbers(),
        training_figures={**training.row("rewards").numbers(), **training.row("details").numbers()},
        training_errors=training.row("standard_errors").numbers(),
        failed=row.row("failed").numbers(),
        diversity=row.number("diversity", math.nan),
        num_prompts=row.integer("num_prompts", 0),
        best=row.flag("best"),
    )


def ending(row: JsonRow) -> Ending:
    """Check a row of kind "end" and return it."""
    return Ending(
        iteration=row.integer("iteration", 0),
        time=row.number("time"),
        reason=row.text("reason"),
    )
