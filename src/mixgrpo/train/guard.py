"""When a run must stop by itself: rewards that fail, updates that are not finite, a reward that collapses."""

from collections.abc import Mapping, Sequence

from mixgrpo.config.schema import Config
from mixgrpo.errors import RewardError, TrainingError
from mixgrpo.train.state import RunState

_STRETCH = 10
"""Iterations whose mean is compared with that of the first as many."""


def check_failures(
    failed: Mapping[str, int], total: int, failures: Mapping[str, Sequence[str]], config: Config
) -> None:
    """Stop when a reward failed on too many of `total` samples; `failures` holds its messages, where known.

    Raises:
        RewardError: with the reward's name and its first message.
    """
    for name, count in failed.items():
        if count > config.guard.max_failed_rewards * total or count == total:
            first = next(iter(failures.get(name, [])), "it gave no number")
            raise RewardError(
                f"reward {name!r} failed on {count} of {total} samples (guard.max_failed_rewards = "
                f"{config.guard.max_failed_rewards}); the first time: {first}"
            )


def longest_streak(before: int, skipped: Sequence[bool]) -> tuple[int, int]:
    """Return the longest and the present number of skipped updates in a row, `before` of them from earlier."""
    longest, present = before, before
    for was_skipped in skipped:
        present = present + 1 if was_skipped else 0
        longest = max(longest, present)
    return longest, present


def check_skipped(in_a_row: int, config: Config) -> None:
    """Stop when too many updates in a row were skipped.

    Raises:
        TrainingError: with their number.
    """
    if in_a_row >= config.guard.max_skipped_updates:
        raise TrainingError(
            f"{in_a_row} updates in a row had a loss or gradient that is not finite (guard.max_skipped_updates = "
            f"{config.guard.max_skipped_updates}). Lower optim.lr, or look for a model or reward that returns NaN"
        )


def remember_rewards(state: RunState, rewards: Mapping[str, Mapping[str, float | int | None]]) -> None:
    """Keep of an iteration's rewards, as `reward_rows` tells them, what `check_collapse` looks at."""
    for name, row in rewards.items():
        for kept, key in ((state.reward_history, "mean"), (state.reward_spread, "std")):
            value = row[key]
            if value is not None:
                kept.setdefault(name, []).append(value)


def check_collapse(state: RunState, config: Config) -> None:
    """Stop when a trained reward has fallen far below where it started.

    Far is a matter of standard deviations, because a reward may have its zero anywhere: those of all samples, in the
    first iterations that they are known of. Until there are ten of those, and for a reward that gave all their samples
    one score, nothing is stopped.

    Raises:
        TrainingError: with the reward's name and figures.
    """
    limit = config.guard.max_reward_drop_std
    for reward in config.rewards:
        values, spreads = state.reward_history.get(reward.name, []), state.reward_spread.get(reward.name, [])
        if reward.weight == 0.0 or len(values) < 2 * _STRETCH or len(spreads) < _STRETCH:
            continue
        first, last = _mean(values[:_STRETCH]), _mean(values[-_STRETCH:])
        deviation = _mean(spreads[:_STRETCH])
        if deviation > 0.0 and first - last > limit * deviation:
            raise TrainingError(
                f"reward {reward.name!r} has collapsed: {last:.3f} over the last {_STRETCH} iterations, {first:.3f} "
                f"over the first {_STRETCH}, which is {(first - last) / deviation:.1f} standard deviations of single "
                f"samples ({deviation:.3f}) less (guard.max_reward_drop_std = {limit:g}). The best checkpoint is kept. "
                "Lower optim.lr or rollout.eta, or raise prompts_per_iteration"
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
