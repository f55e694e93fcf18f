"""Scores of many batches as one table, and what is said about them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.errors import RewardError
from mixgrpo.rewards.scorer import ScoreTable


def join_tables(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Return one table over the images of all `tables`, in their order; a detail that a batch lacks is NaN there."""
    sizes = [len(next(iter(table.values.values()))) for table in tables]
    return ScoreTable(
        values=_join([table.values for table in tables], sizes),
        details=_join([table.details for table in tables], sizes),
        failures={name: [text for table in tables for text in table.failures[name]] for name in tables[0].failures},
    )


@dataclass(frozen=True, slots=True)
class Means:
    """Means over the images that could be scored, by reward and detail, and their standard errors."""

    rewards: dict[str, float]
    details: dict[str, float]
    standard_errors: dict[str, float]
    failed: dict[str, int]
    """Images that a reward could not score."""


def summarise(table: ScoreTable) -> Means:
    """Return the means of a table; an image that could not be scored counts in none.

    Raises:
        RewardError: if a reward could not score a single image.
    """
    means: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, scores in (table.values | table.details).items():
        scored = scores[torch.isfinite(scores)].double()
        if len(scored):
            means[name] = scored.mean().item()
        elif name in table.values:
            raise RewardError(f"reward {name!r} could not score a single image: {(table.failures[name] or ['NaN'])[0]}")
        if len(scored) > 1:
            errors[name] = scored.std().item() / math.sqrt(len(scored))
    return Means(
        rewards={name: means[name] for name in table.values},
        details={name: means[name] for name in table.details if name in means},
        standard_errors=errors,
        failed=table.failed,
    )


def heldout_figures(means: Means) -> dict[str, dict[str, float]]:
    """Return means as the rows of evaluations hold them."""
    return {"rewards": means.rewards, "details": means.details, "standard_errors": means.standard_errors}


def reward_rows(
    scores: Mapping[str, Tensor], means: Means, shares: Mapping[str, float]
) -> dict[str, dict[str, float | int | None]]:
    """Return what the row of an iteration says of each reward.

    That is mean and spread of its scores [P, G], the spread within groups, its share of the advantages (None where
    there were none), and how many samples it could not score.
    """
    return {
        name: {
            "mean": means.rewards[name],
            "std": spread(values.flatten()),
            "group_std": group_spread(values),
            "advantage_share": shares.get(name),
            "failed": means.failed[name],
        }
        for name, values in scores.items()
    }


def spread(values: Tensor) -> float | None:
    """Return the standard deviation of those values that are finite; None if none is."""
    scored = values[torch.isfinite(values)]
    return scored.std(correction=0).item() if len(scored) else None


def group_spread(values: Tensor) -> float | None:
    """Return the mean over the groups of values [P, G] of their standard deviations; None if none has one."""
    spreads = [one for group in values if (one := spread(group)) is not None]
    return sum(spreads) / len(spreads) if spreads else None


def _join(columns: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for column in columns for name in column)
    return {
        name: torch.cat(
            [column.get(name, torch.full((size,), math.nan)) for column, size in zip(columns, sizes, strict=True)]
        )
        for name in names
    }
