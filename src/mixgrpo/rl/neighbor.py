"""Neighbor GRPO's surrogate policy for deterministic sampling (arXiv 2511.16955).

Samples of a group start from neighbouring noises and are drawn by an ODE solver, so there is no density to take a
ratio of. In its place stands a softmax over the group: take a member's state at a step, let the model take one Euler
step from it, and ask which of the group's stored next states that step comes closest to. Rewarding the better members
then pulls the model's step towards them.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def neighbor_log_prob(
    prediction: Float[Tensor, " batch *latent"],
    candidates: Float[Tensor, " batch group *latent"],
    *,
    temperature: float,
) -> Float[Tensor, " batch group"]:
    """Return log softmax_i(-|candidate_i - prediction|^2 / (temperature c)) over the G candidates of each prediction.

    |.|^2 is the mean over latent dimensions, and c the mean of it between two different candidates, so that
    `temperature` has no unit and fits every step: 1 means that a candidate as far away as a typical neighbour is e
    times less likely than one that is hit. The paper (as far as we could read it) names no temperature; without one
    that is tied to the distances, the softmax saturates on the state's own successor and no gradient is left.

    Raises:
        ValueError: if `temperature` is not positive, or there are fewer than two candidates.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    group_size = candidates.shape[1]
    if group_size < 2:
        raise ValueError(f"a softmax over neighbours needs at least 2 candidates, got {group_size}")
    flat = candidates.flatten(2)
    distances = (flat - prediction.flatten(1).unsqueeze(1)).square().mean(-1)
    # the mean squared distance of two different members is twice the variance with Bessel's correction
    scale = 2.0 * flat.var(1, correction=1).mean(-1, keepdim=True)
    return torch.log_softmax(-distances / (temperature * torch.where(scale > 0.0, scale, 1.0)), dim=-1)
