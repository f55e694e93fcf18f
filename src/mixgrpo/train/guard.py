"""When a run must stop by itself: rewards that fail, updates that are not finite, a reward that collapses."""

from mixgrpo.config.schema import Config
from mixgrpo.errors import RewardError, TrainingError
from mixgrpo.rewards.scorer import ScoreTable
from mixgrpo.train.step import UpdateReport

_STRETCH = 10
"""Iterations whose mean is compared with that of the first as many."""


def check_failures(scores: ScoreTable, config: Config) -> None:
    """Stop when a reward failed on too many samples of an iteration.

    Raises:
        RewardError: with the reward's name and its first message.
    """
    for name, failed in scores.failed.items():
        total = len(scores.values[name])
        if failed > config.guard.max_failed_rewards * total or failed == total:
            first = scores.failures[name][0] if scores.failures[name] else "it returned NaN"
            raise RewardError(
                f"reward {name!r} failed on {failed} of {total} samples of an iteration (guard.max_failed_rewards = "
                f"{config.guard.max_failed_rewards}); the first time: {first}"
            )


def check_skipped(before: int, report: UpdateReport, config: Config) -> int:
    """Return how many updates in a row were skipped by now.

    Raises:
        TrainingError: when they are too many.
    """
    in_a_row = before + report.skipped if report.skipped == config.loss.updates_per_iteration else report.skipped
    if in_a_row >= config.guard.max_skipped_updates:
        raise TrainingError(
            f"{in_a_row} updates in a row had a loss or gradient that is not finite (guard.max_skipped_updates = "
            f"{config.guard.max_skipped_updates}). Lower optim.lr, or look for a model or reward that returns NaN"
        )
    return in_a_row


def check_collapse(history: dict[str, list[float]], config: Config) -> None:
    """Stop when a trained reward has fallen far below where it started.

    Raises:
        TrainingError: with the reward's name and figures.
    """
    for reward in config.rewards:
        values = history.get(reward.name, [])
        if reward.weight == 0.0 or len(values) < 2 * _STRETCH:
            continue
        first, last = sum(values[:_STRETCH]) / _STRETCH, sum(values[-_STRETCH:]) / _STRETCH
        if first > 0.0 and last < first * (1.0 - config.guard.max_reward_drop):
            raise TrainingError(
                f"reward {reward.name!r} has collapsed: {last:.3f} over the last {_STRETCH} iterations, {first:.3f} "
                f"over the first {_STRETCH} (guard.max_reward_drop = {config.guard.max_reward_drop}). The best "
                f"checkpoint is kept. Lower optim.lr or rollout.eta, or raise prompts_per_iteration"
            )
