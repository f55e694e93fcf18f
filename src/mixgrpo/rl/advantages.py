"""Group-relative advantages, with several rewards and with samples that could not be scored.

Shapes: P prompts, G samples per prompt. A score that is NaN marks a sample that could not be scored: it is left out of
its group's statistics and gets advantage 0.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

_FLAT = 1e-6  # a group whose spread is below this share of its scores holds rounding errors, not differences


def group_advantages(
    scores: Mapping[str, Float[Tensor, " prompts group"]],
    *,
    weights: Mapping[str, float] | None = None,
    mix: Literal["advantages", "rewards"] = "advantages",
    clip: float = 5.0,
) -> Float[Tensor, " prompts group"]:
    """Return A [P, G]: how much better each sample is than its group, in standard deviations.

    mix "advantages" (arXiv 2507.21802): A = sum_k w_k (R_k - mean_k) / std_k, so that no reward dominates by its scale.
    mix "rewards": A = (R - mean) / std of R = sum_k w_k R_k. Mean and population standard deviation are those of the
    group. A is clipped to [-clip, clip]. Weights default to 1; a reward of weight 0 has no say, not even by its NaNs.
    A sample that any other reward could not score is masked for all. Groups without spread or with fewer than two
    scored samples get zeros.

    Raises:
        ValueError: if there is no reward, shapes differ, or a weight is missing, unknown or negative.
    """
    active = _active_weights(scores, weights)
    stacked_KPG = torch.stack([scores[name].double() for name in active])
    weights_K11 = torch.tensor(list(active.values()), dtype=torch.float64, device=stacked_KPG.device)[:, None, None]
    scored_PG = torch.isfinite(stacked_KPG).all(0)
    stacked_KPG = torch.where(scored_PG, stacked_KPG, 0.0)
    if mix == "advantages":
        advantages_PG = (weights_K11 * _normalise(stacked_KPG, scored_PG)).sum(0)
    elif mix == "rewards":
        advantages_PG = _normalise((weights_K11 * stacked_KPG).sum(0), scored_PG)
    else:
        raise ValueError(f"mix must be 'advantages' or 'rewards', got {mix!r}")
    return advantages_PG.clamp(-clip, clip).float()


def _normalise(scores: Tensor, scored: Tensor) -> Tensor:
    """Return (scores - mean) / std over the last dim, of the samples that `scored` marks; zeros elsewhere."""
    count = scored.sum(-1, keepdim=True).clamp(min=1)
    mean = (scores * scored).sum(-1, keepdim=True) / count
    deviation = (scores - mean) * scored
    std = (deviation.square().sum(-1, keepdim=True) / count).sqrt()
    flat = std <= _FLAT * (scores * scored).abs().amax(-1, keepdim=True)
    return torch.where(flat, 0.0, deviation / torch.where(flat, 1.0, std))


def _active_weights(scores: Mapping[str, Tensor], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weights above 0 by reward, after checking that they fit the scores."""
    if weights is None:
        weights = dict.fromkeys(scores, 1.0)
    if set(weights) != set(scores):
        raise ValueError(f"weights are for {sorted(weights)}, scores for {sorted(scores)}; they must be the same")
    if negative := [name for name, weight in weights.items() if weight < 0]:
        raise ValueError(f"the weight of {negative[0]!r} is {weights[negative[0]]}; weights must be at least 0")
    active = {name: float(weights[name]) for name in scores if weights[name] > 0}
    if not active:
        raise ValueError("no reward has a weight above 0")
    if len(shapes := {tuple(scores[name].shape) for name in active}) > 1:
        raise ValueError(f"scores of all rewards must have one shape [prompts, group], got {sorted(shapes)}")
    return active
