"""Group-relative advantages, with several rewards and with samples that could not be scored.

Shapes: P prompts, G samples per prompt. A score that is NaN marks a sample that could not be scored: it is left out of
its group's statistics and gets advantage 0.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_FLAT = 1e-6  # a group whose spread is below this share of its scores holds rounding errors, not differences


def group_advantages(
    scores: Mapping[str, Float[Tensor, " prompts group"]],
    *,
    weights: Mapping[str, float] | None = None,
    mix: Literal["advantages", "rewards"] = "advantages",
    clip: float = 5.0,
    std: Literal["group", "batch"] = "group",
) -> Float[Tensor, " prompts group"]:
    """Return A [P, G]: how much better each sample is than its group, in standard deviations.

    mix "advantages" (arXiv 2507.21802): A = sum_k w_k (R_k - mean_k) / std_k, so that no reward dominates by its scale.
    mix "rewards": A = (R - mean) / std of R = sum_k w_k R_k. The mean is that of the group; so is the population
    standard deviation with `std` "group", while "batch" takes that of all scores (Flow-GRPO's global one). A is
    clipped to [-clip, clip]. Weights default to 1; a reward of weight 0 has no say, not even by its NaNs. A sample
    that any other reward could not score is masked for all. Groups without spread or with fewer than two scored
    samples get zeros.

    Raises:
        ValueError: if there is no reward, shapes differ, or a weight is missing, unknown or negative.
    """
    _, advantages_PG = _terms(scores, _active_weights(scores, weights), mix=mix, std=std)
    return advantages_PG.clamp(-clip, clip).float()


def advantage_shares(
    scores: Mapping[str, Float[Tensor, " prompts group"]],
    *,
    weights: Mapping[str, float] | None = None,
    mix: Literal["advantages", "rewards"] = "advantages",
    std: Literal["group", "batch"] = "group",
) -> dict[str, float]:
    """Return what share of the advantages each reward makes, of all samples together; they sum to 1.

    Before the clip an advantage is a sum over the rewards, A = sum_k a_k with a_k = w_k (R_k - mean_k) / std_k; where
    `mix` is "rewards", std is that of the sum. The share of reward k is sum(a_k A) / sum(A^2): 1 where
    it decides alone, 0 where it has no say, negative where the others outvote it. A reward of weight 0 has 0. Nothing
    is returned where no sample has an advantage. Arguments and errors are those of `group_advantages`.
    """
    active = _active_weights(scores, weights)
    terms_KPG, total_PG = _terms(scores, active, mix=mix, std=std)
    whole = total_PG.square().sum().item()
    if not whole > 0.0:
        return {}
    shares = dict(zip(active, ((terms_KPG * total_PG).sum((1, 2)) / whole).tolist(), strict=True))
    return {name: shares.get(name, 0.0) for name in scores}


def quasi_norm(advantages: Float[Tensor, " prompts group"], *, power: float) -> Float[Tensor, " prompts group"]:
    """Return A [P, G] divided by its group's l_p quasi-norm and multiplied by sqrt(G) (arXiv 2511.16955).

    A'_i = sqrt(G) A_i / (sum_k |A_k|^p)^(1/p), with p = `power`. At p = 2 normalised advantages stay as they are; below
    that, groups in which many samples differ a little are damped against groups in which few differ a lot.

    Raises:
        ValueError: if `power` is not positive.
    """
    if not power > 0.0:
        raise ValueError(f"power must be above 0, got {power}")
    norm = advantages.double().abs().pow(power).sum(-1, keepdim=True).pow(1.0 / power)
    scale = math.sqrt(advantages.shape[-1])
    return torch.where(norm > 0.0, scale * advantages / torch.where(norm > 0.0, norm, 1.0), 0.0).float()


def carries_signal(
    advantages: Float[Tensor, " prompts group"], *, extremes: int = 0, threshold: float = 0.0
) -> Bool[Tensor, " prompts group"]:
    """Say which samples of A [P, G] an update is worth its model calls.

    With `extremes` = k those are the k best and the k worst of every group, with 0 all of them; of these, samples with
    |A| below `threshold` are left out.

    Raises:
        ValueError: if a group has fewer than 2 k samples, or a value is negative.
    """
    group_size = advantages.shape[-1]
    if not 0 <= 2 * extremes <= group_size:
        raise ValueError(f"extremes must be in [0, {group_size // 2}] for groups of {group_size}, got {extremes}")
    if threshold < 0.0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    kept = ~(advantages.abs() < threshold)  # NaN stays in, where an update will notice it
    if extremes:
        rank = advantages.argsort(dim=-1, stable=True).argsort(dim=-1)
        kept &= (rank < extremes) | (rank >= group_size - extremes)
    return kept


def _terms(scores: Mapping[str, Tensor], active: Mapping[str, float], *, mix: str, std: str) -> tuple[Tensor, Tensor]:
    """Return what each reward of `active` adds [K, P, G] to the advantages before the clip, and these [P, G]."""
    stacked_KPG = torch.stack([scores[name].double() for name in active])
    weights_K11 = torch.tensor(list(active.values()), dtype=torch.float64, device=stacked_KPG.device)[:, None, None]
    scored_PG = torch.isfinite(stacked_KPG).all(0)
    stacked_KPG = torch.where(scored_PG, stacked_KPG, 0.0)
    if mix == "advantages":
        terms_KPG = weights_K11 * _normalise(stacked_KPG, scored_PG, over=std)
        return terms_KPG, terms_KPG.sum(0)
    if mix == "rewards":
        weighted_KPG = weights_K11 * stacked_KPG
        mixed_PG = weighted_KPG.sum(0)
        terms_KPG = _divide(_deviation(weighted_KPG, scored_PG), _spread(mixed_PG, scored_PG, over=std))
        return terms_KPG, _normalise(mixed_PG, scored_PG, over=std)
    raise ValueError(f"mix must be 'advantages' or 'rewards', got {mix!r}")


def _normalise(scores: Tensor, scored: Tensor, *, over: str) -> Tensor:
    """Return (scores - group mean) / std of [..., P, G], of the samples that `scored` [P, G] marks; zeros elsewhere."""
    return _divide(_deviation(scores, scored), _spread(scores, scored, over=over))


def _divide(deviation: Tensor, spread: Tensor) -> Tensor:
    flat = spread == 0.0
    return torch.where(flat, 0.0, deviation / torch.where(flat, 1.0, spread))


def _deviation(scores: Tensor, scored: Tensor) -> Tensor:
    """Return scores - group mean, of the samples that `scored` marks; zeros elsewhere."""
    count = scored.sum(-1, keepdim=True).clamp(min=1)
    return (scores - (scores * scored).sum(-1, keepdim=True) / count) * scored


def _spread(scores: Tensor, scored: Tensor, *, over: str) -> Tensor:
    """Return the standard deviation [..., P, 1] that a group's scores are divided by, 0 for a group without spread."""
    if over not in ("group", "batch"):
        raise ValueError(f"std must be 'group' or 'batch', got {over!r}")
    count = scored.sum(-1, keepdim=True).clamp(min=1)
    spread = (_deviation(scores, scored).square().sum(-1, keepdim=True) / count).sqrt()
    flat = spread <= _FLAT * (scores * scored).abs().amax(-1, keepdim=True)
    if over == "batch":
        total = scored.sum().clamp(min=1)
        mean = (scores * scored).sum((-2, -1), keepdim=True) / total
        spread = (((scores - mean) * scored).square().sum((-2, -1), keepdim=True) / total).sqrt()
    return torch.where(flat, 0.0, spread)


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
