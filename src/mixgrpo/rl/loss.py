"""Losses of one stochastic step: the clipped GRPO loss, its relatives, and the divergence to another policy.

Everything here is about the Gaussian p(x_next given x) of one step. Methods without such a Gaussian are in
`neighbor.py` (deterministic steps) and `forward.py` (the forward process).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mixgrpo.flow.steps import Gaussian


class LossOutput(NamedTuple):
    """A scalar loss to minimise, and detached figures about it."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


def grpo_loss(
    log_prob: Float[Tensor, " batch"],
    old_log_prob: Float[Tensor, " batch"],
    advantages: Float[Tensor, " batch"],
    *,
    clip_range: float,
) -> LossOutput:
    """Return the mean of -min(r A, clip(r, 1 - clip_range, 1 + clip_range) A), r = exp(log_prob - old_log_prob).

    This is equation 9 of arXiv 2507.21802 for one step, without its KL term. Metrics: `ratio_mean`, `ratio_max`,
    `clip_fraction` (samples whose gradient the clip removed), `advantage_mean` and `advantage_abs_mean`.

    Raises:
        ValueError: if `clip_range` is not positive.
    """
    if not clip_range > 0.0:
        raise ValueError(f"clip_range must be above 0, got {clip_range}")
    ratio = (log_prob - old_log_prob.detach()).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    loss = -torch.minimum(unclipped, clipped).mean()
    with torch.no_grad():
        metrics = {
            **_figures(ratio, advantages),
            "clip_fraction": (clipped < unclipped).float().mean(),
        }
    return LossOutput(loss, metrics)


def divergence_masked_loss(
    log_prob: Float[Tensor, " batch"],
    old_log_prob: Float[Tensor, " batch"],
    advantages: Float[Tensor, " batch"],
    *,
    divergence: Float[Tensor, " batch"],
    max_divergence: float,
) -> LossOutput:
    """Return the mean of -r A without the samples that have already moved far enough (Flow-DPPO, arXiv 2606.11025).

    In place of a clip on the ratio, a sample is left out when `divergence` (the KL divergence of its step from the
    sampling policy's, `gaussian_kl`) has reached `max_divergence` and the gradient would raise it further: r > 1 with
    A > 0, or r < 1 with A < 0. The metric `clip_fraction` counts the samples left out.

    Raises:
        ValueError: if `max_divergence` is not positive.
    """
    if not max_divergence > 0.0:
        raise ValueError(f"max_divergence must be above 0, got {max_divergence}")
    ratio = (log_prob - old_log_prob.detach()).exp()
    moves_away = ((ratio > 1.0) & (advantages > 0.0)) | ((ratio < 1.0) & (advantages < 0.0))
    masked = moves_away & (divergence.detach() >= max_divergence)
    loss = -torch.where(masked, 0.0, ratio * advantages).mean()
    with torch.no_grad():
        return LossOutput(loss, {**_figures(ratio, advantages), "clip_fraction": masked.float().mean()})


def normalised_log_ratio(
    policy: Gaussian, old: Gaussian, x_next: Float[Tensor, " batch *latent"]
) -> Float[Tensor, " batch"]:
    """Return GRPO-Guard's log-ratio std (log r + |dmean|^2 / (2 std^2)), a mean over latent dims (arXiv 2510.22319).

    The expectation of log r under the old policy is below 0 and differs from step to step, so a clip range acts
    unevenly. With dmean = policy.mean - old.mean and z = (x_next - old.mean) / std this one equals dmean z: its
    expectation is 0 and its scale does not depend on std.
    """
    _check_one_std(policy, old)
    z = (x_next - old.mean) / old.std
    return ((policy.mean - old.mean) * z).flatten(1).mean(1)


def gaussian_kl(policy: Gaussian, reference: Gaussian) -> Float[Tensor, " batch"]:
    """Return KL(policy || reference) of two kernels with one standard deviation, as the mean over latent dimensions.

    With equal standard deviations it is |mean - mean_ref|^2 / (2 std^2) (arXiv 2505.05470, section 4.2), here averaged
    like the log-probabilities.
    """
    _check_one_std(policy, reference)
    difference = (policy.mean - reference.mean) / policy.std
    return 0.5 * difference.square().flatten(1).mean(1)


def _check_one_std(policy: Gaussian, other: Gaussian) -> None:
    if policy.std != other.std:
        raise ValueError(f"the kernels must have one standard deviation, got {policy.std} and {other.std}")


def _figures(ratio: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    return {
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "advantage_mean": advantages.mean(),
        "advantage_abs_mean": advantages.abs().mean(),
    }
