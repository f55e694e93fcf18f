"""Which denoising steps are stochastic, as a pure function of the iteration (arXiv 2507.21802, section 3 and table 4).

`num_steps` is T everywhere. Step T - 1 lands on sigma 0 and is never stochastic, so windows are taken from steps
0 to T - 2; no window is ever empty, cut short, or dependent on anything but the iteration. No torch.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

AfterLast = Literal["restart", "stay"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindow:
    """A window of `size` steps that moves by `stride` every `interval` iterations (progressive, constant tau).

    The last move is cut so that the last position is the last full window. After it the window starts over
    (`restart`) or stays there (`stay`).
    """

    num_steps: int
    size: int
    stride: int = 1
    interval: int = 25
    after_last: AfterLast = "restart"

    def __post_init__(self) -> None:
        """Check the values."""
        _check_size(self.num_steps, self.size)
        _check_at_least_one(stride=self.stride, interval=self.interval)
        _check_after_last(self.after_last)

    @property
    def starts(self) -> tuple[int, ...]:
        """First steps of all positions, in the order they are visited."""
        return _starts(self.num_steps, self.size, self.stride)

    def at(self, iteration: int) -> range:
        """Return the stochastic steps of `iteration`, counted from 0."""
        _check_iteration(iteration)
        position = iteration // self.interval
        last = len(self.starts) - 1
        position = position % (last + 1) if self.after_last == "restart" else min(position, last)
        return _window(self.starts[position], self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecayingWindow:
    """A sliding window whose interval shrinks, so that late steps are trained for fewer iterations.

    exponential: tau(l) = ceil(interval * exp(-rate * max(0, l - threshold))) at window start l.
    linear: tau(l) = ceil(interval * (1 - l / (l_last + 1))), which falls from `interval` evenly over the positions.
    Neither is ever below 1. `rate` and `threshold` belong to the exponential decay.
    """

    num_steps: int
    size: int
    stride: int = 1
    interval: int = 25
    decay: Literal["exponential", "linear"] = "exponential"
    rate: float = 0.1
    threshold: int = 13
    after_last: AfterLast = "restart"

    def __post_init__(self) -> None:
        """Check the values."""
        _check_size(self.num_steps, self.size)
        _check_at_least_one(stride=self.stride, interval=self.interval)
        _check_after_last(self.after_last)
        if self.decay not in ("exponential", "linear"):
            raise ValueError(f"decay must be 'exponential' or 'linear', got {self.decay!r}")
        if not self.rate > 0.0 or self.threshold < 0:
            raise ValueError(f"rate must be above 0 and threshold at least 0, got {self.rate} and {self.threshold}")

    @property
    def starts(self) -> tuple[int, ...]:
        """First steps of all positions, in the order they are visited."""
        return _starts(self.num_steps, self.size, self.stride)

    def interval_at(self, start: int) -> int:
        """Return the iterations that the window stays at `start`."""
        if self.decay == "exponential":
            share = math.exp(-self.rate * max(0, start - self.threshold))
        else:
            share = 1.0 - start / (self.starts[-1] + 1)
        return max(1, math.ceil(self.interval * share))

    def at(self, iteration: int) -> range:
        """Return the stochastic steps of `iteration`, counted from 0."""
        _check_iteration(iteration)
        intervals = [self.interval_at(start) for start in self.starts]
        if self.after_last == "restart":
            iteration %= sum(intervals)
        for start, interval in zip(self.starts, intervals, strict=True):
            if iteration < interval:
                return _window(start, self.size)
            iteration -= interval
        return _window(self.starts[-1], self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenWindow:
    """A window that never moves; at start 0 it is MixGRPO's frozen strategy and that of Flash*."""

    num_steps: int
    size: int
    start: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        _check_size(self.num_steps, self.size)
        if not 0 <= self.start <= self.num_steps - 1 - self.size:
            raise ValueError(f"window start must be in [0, {self.num_steps - 1 - self.size}], got {self.start}")

    def at(self, iteration: int) -> range:
        """Return the same steps for every iteration."""
        _check_iteration(iteration)
        return _window(self.start, self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomWindow:
    """A window at a uniformly random place in every iteration, keyed by (seed, iteration): the same on every rank.

    It is drawn from the first `reach` of the positions: all of them, or, as Flow-GRPO-Fast does, the noisier ones.
    """

    num_steps: int
    size: int
    seed: int
    reach: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        _check_size(self.num_steps, self.size)
        if not 0.0 < self.reach <= 1.0:
            raise ValueError(f"reach must be in (0, 1], got {self.reach}")

    def at(self, iteration: int) -> range:
        """Return the stochastic steps of `iteration`, counted from 0."""
        _check_iteration(iteration)
        starts = _starts(self.num_steps, self.size, 1)
        starts = starts[: max(1, round(self.reach * len(starts)))]
        return _window(starts[_draw(self.seed, iteration, 0) % len(starts)], self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class AllSteps:
    """Every step but the last is stochastic (Flow-GRPO, DanceGRPO); an update may train only some of them.

    That is floor(trained_fraction (T - 1)) steps, or `num_trained` if that is not 0: drawn anew for every iteration
    (`choice` "random") or always the first ones ("first").
    """

    num_steps: int
    trained_fraction: float = 1.0
    seed: int = 0
    num_trained: int = 0
    choice: Literal["random", "first"] = "random"

    def __post_init__(self) -> None:
        """Check the values."""
        _check_size(self.num_steps, 1)
        if not 0.0 < self.trained_fraction <= 1.0:
            raise ValueError(f"trained_fraction must be in (0, 1], got {self.trained_fraction}")
        if not 0 <= self.num_trained <= self.num_steps - 1:
            raise ValueError(f"num_trained must be in [0, {self.num_steps - 1}], got {self.num_trained}")
        if self.choice not in ("random", "first"):
            raise ValueError(f"choice must be 'random' or 'first', got {self.choice!r}")

    def at(self, iteration: int) -> range:
        """Return all steps that may be stochastic."""
        _check_iteration(iteration)
        return range(self.num_steps - 1)

    def trained(self, iteration: int) -> tuple[int, ...]:
        """Return the steps that the updates of `iteration` train, in order."""
        window = self.at(iteration)
        count = self.num_trained or max(1, int(self.trained_fraction * len(window) + 1e-9))
        if self.choice == "first":
            return tuple(window[:count])
        return tuple(sorted(sorted(window, key=lambda step: _draw(self.seed, iteration, 1 + step))[:count]))


Window = SlidingWindow | DecayingWindow | FrozenWindow | RandomWindow | AllSteps


def trained_steps(window: Window, iteration: int) -> tuple[int, ...]:
    """Return the steps that the updates of `iteration` train: those of the window, or AllSteps' share of them."""
    return window.trained(iteration) if isinstance(window, AllSteps) else tuple(window.at(iteration))


def _starts(num_steps: int, size: int, stride: int) -> tuple[int, ...]:
    """Return 0, stride, 2 stride, ... up to and always including the last full window, as min(l + s, last) gives."""
    last = num_steps - 1 - size
    return (*range(0, last, stride), last)


def _window(start: int, size: int) -> range:
    return range(start, start + size)


def _draw(*key: int) -> int:
    """Return a 64-bit integer that depends on `key` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _check_size(num_steps: int, size: int) -> None:
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, because the last step is never stochastic; got {num_steps}")
    if not 1 <= size <= num_steps - 1:
        raise ValueError(f"window size must be in [1, {num_steps - 1}] for {num_steps} steps, got {size}")


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_after_last(after_last: str) -> None:
    if after_last not in ("restart", "stay"):
        raise ValueError(f"after_last must be 'restart' or 'stay', got {after_last!r}")


def _check_iteration(iteration: int) -> None:
    if iteration < 0:
        raise ValueError(f"iteration counts from 0, got {iteration}")
