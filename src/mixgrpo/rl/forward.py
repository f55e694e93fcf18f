"""Losses on the forward process: the model is trained on finished samples with noise added, by how good they are.

There is no density of a sampling step, so samples may come from any solver. `target` is the velocity that a sample
itself asks for, noise - x0, at the state x = (1 - sigma) x0 + sigma noise where `v` was predicted.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mixgrpo.rl.loss import LossOutput

_SMALLEST = 1e-5  # mean error of x0 below which it no longer scales the loss up


def nft_loss(
    v: Float[Tensor, " batch *latent"],
    old_v: Float[Tensor, " batch *latent"],
    target: Float[Tensor, " batch *latent"],
    advantages: Float[Tensor, " batch"],
    *,
    sigma: float,
    beta: float,
    advantage_scale: float,
) -> LossOutput:
    """Return DiffusionNFT's loss, the mean of r L(v+) + (1 - r) L(v-) (arXiv 2509.16117, section 3).

    v+ = (1 - beta) old_v + beta v is pulled to good samples, v- = (1 + beta) old_v - beta v to bad ones, and
    r = 1/2 + 1/2 clip(A / advantage_scale, -1, 1) says how good a sample is. L(u) is the squared error of the x0 that
    u predicts, divided by its own mean absolute error (detached): with e = u - target that is
    sigma mean(e^2) / mean|e|, means over latent dimensions, which keeps the levels of noise in balance. The released
    code multiplies the whole by 5 / beta.
    Metrics: `optimality_mean` (of r) and `old_distance`, the mean of |v - old_v|^2.

    Raises:
        ValueError: if `beta` or `advantage_scale` is not positive.
    """
    if not (beta > 0.0 and advantage_scale > 0.0):
        raise ValueError(f"beta and advantage_scale must be above 0, got {beta} and {advantage_scale}")
    old_v = old_v.detach()
    optimality = 0.5 + 0.5 * (advantages / advantage_scale).clamp(-1.0, 1.0)
    positive = _self_normalised((1.0 - beta) * old_v + beta * v - target, sigma)
    negative = _self_normalised((1.0 + beta) * old_v - beta * v - target, sigma)
    loss = (optimality * positive + (1.0 - optimality) * negative).mean()
    with torch.no_grad():
        figures = {"optimality_mean": optimality.mean(), "old_distance": _mean_square(v - old_v).mean()}
    return LossOutput(loss, figures)


def matching_log_prob(
    v: Float[Tensor, " batch *latent"], target: Float[Tensor, " batch *latent"]
) -> Float[Tensor, " batch"]:
    """Return -|v - target|^2, AWM's stand-in for a sample's log-probability (arXiv 2509.25050), a mean over dims.

    The paper has a weight w(sigma) before it; here w = 1.
    """
    return -_mean_square(v - target)


def velocity_distance(
    v: Float[Tensor, " batch *latent"], reference: Float[Tensor, " batch *latent"]
) -> Float[Tensor, " batch"]:
    """Return |v - reference|^2, the divergence to another model where no step has a density; a mean over dims."""
    return _mean_square(v - reference)


def _self_normalised(error: Tensor, sigma: float) -> Tensor:
    """Return mean((sigma error)^2) / mean|sigma error| per sample; sigma error is that of the predicted x0."""
    flat = (sigma * error).flatten(1)
    return flat.square().mean(1) / flat.detach().abs().mean(1).clamp(min=_SMALLEST)


def _mean_square(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1)
