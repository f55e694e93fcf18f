"""The clipped GRPO loss of one stochastic step, and the divergence to the starting model."""

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
            "ratio_mean": ratio.mean(),
            "ratio_max": ratio.max(),
            "clip_fraction": (clipped < unclipped).float().mean(),
            "advantage_mean": advantages.mean(),
            "advantage_abs_mean": advantages.abs().mean(),
        }
    return LossOutput(loss, metrics)


def gaussian_kl(policy: Gaussian, reference: Gaussian) -> Float[Tensor, " batch"]:
    """Return KL(policy || reference) of two kernels with one standard deviation, as the mean over latent dimensions.

    With equal standard deviations it is |mean - mean_ref|^2 / (2 std^2) (arXiv 2505.05470, section 4.2), here averaged
    like the log-probabilities.
    """
    if policy.std != reference.std:
        raise ValueError(f"the kernels must have one standard deviation, got {policy.std} and {reference.std}")
    difference = (policy.mean - reference.mean) / policy.std
    return 0.5 * difference.square().flatten(1).mean(1)
