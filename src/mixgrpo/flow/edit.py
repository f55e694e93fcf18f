"""Editing a latent by noising it and solving down again (Nie et al., arXiv 2311.01410), for flow matching.

A clean latent is taken up a grid of sigmas to below 1, and from there down again under another prompt. The states of
the way up are kept: with them Cycle-SDE knows what the source prompt would have needed to retrace them, and a mask
knows what to put back. A grid falls from the strength of the edit to exactly 0.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mixgrpo.flow.steps import _at_least_float32, gddim_kernel, ode_step

Method = Literal["ode", "sde", "cycle-sde"]

Velocity = Callable[[Tensor, float], Tensor]
"""(x [B, *latent], sigma) -> v [B, *latent], of one prompt per sample."""

Draw = Callable[[int], Tensor]
"""Step -> standard normal noise [B, *latent]."""

TRUE_REVERSE_ETA = math.sqrt(2.0)
"""The eta (lambda = 1) with which the kernel is the reverse of the noising itself."""


@torch.no_grad()
def edit(
    x0: Float[Tensor, " batch *latent"],
    sigmas: Sequence[float],
    *,
    method: Method,
    source: Velocity,
    target: Velocity,
    noise_up: Draw,
    noise_down: Draw,
    eta: float = TRUE_REVERSE_ETA,
    mask: Bool[Tensor, " batch *latent"] | None = None,
) -> Float[Tensor, " batch *latent"]:
    """Return the latent x0 of the `source` prompt, edited to the `target` prompt.

    "ode" solves up under the source prompt and down under the target prompt, without noise. "sde" noises with
    `noise_up` and comes down with fresh `noise_down`: the higher `sigmas[0]`, the more it forgets. "cycle-sde" noises
    with `noise_up` and comes down with the noise that would retrace those states under the source prompt; with the
    same prompt on both sides, the result *is* x0, bit for bit. Where `mask` is False the states of the way up are put
    back after every step, so that the result there is x0, bit for bit, with any method.

    Raises:
        ValueError: if the grid does not fall from below 1 to 0, or there is no such method.
    """
    if not (len(sigmas) > 1 and sigmas[0] < 1.0 and sigmas[-1] == 0.0 and all(a > b for a, b in pairwise(sigmas))):
        raise ValueError(f"the grid of an edit falls from below 1 to exactly 0, got {tuple(sigmas)}")
    if method not in ("ode", "sde", "cycle-sde"):
        raise ValueError(f"method must be 'ode', 'sde' or 'cycle-sde', got {method!r}")
    kernel = partial(gddim_kernel, eta=eta)
    states = solve_up(x0, sigmas, source) if method == "ode" else noised_states(x0, sigmas, noise_up)
    x = states[0]
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        before, after = states[step], states[step + 1]
        v = target(x, sigma)
        if method == "ode":
            x = ode_step(x, v, sigma=sigma, sigma_next=sigma_next)
        elif method == "sde":
            mean, std = kernel(x, v, sigma=sigma, sigma_next=sigma_next)
            x = mean + std * noise_down(step) if std > 0.0 else mean
        else:
            # The source's noise is w = (after - its mean) / std, and the step is mean + std w. Without the division it
            # holds where std is 0 too, and in this order equal means leave `after` as it is, to the last bit.
            retraced = kernel(before, source(before, sigma), sigma=sigma, sigma_next=sigma_next).mean
            x = after + (kernel(x, v, sigma=sigma, sigma_next=sigma_next).mean - retraced)
        if mask is not None:
            x = torch.where(mask, x, after)
    return x


def noised_states(
    x0: Float[Tensor, " batch *latent"], sigmas: Sequence[float], draw: Draw
) -> list[Float[Tensor, " batch *latent"]]:
    """Noise x0 up the grid, each state from the one below it; return one state per sigma, the noisiest first.

    The Markov chain of x_s = (1 - s) x0 + s noise: from s' to s it keeps k = (1 - s) / (1 - s') of the state and adds
    noise of variance s^2 - k^2 s'^2.
    """
    states = [_at_least_float32(x0)]
    for step in reversed(range(len(sigmas) - 1)):
        sigma, below = sigmas[step], sigmas[step + 1]
        keep = (1.0 - sigma) / (1.0 - below)
        states.append(keep * states[-1] + math.sqrt(sigma**2 - (keep * below) ** 2) * draw(step))
    return states[::-1]


def solve_up(
    x0: Float[Tensor, " batch *latent"], sigmas: Sequence[float], velocity: Velocity
) -> list[Float[Tensor, " batch *latent"]]:
    """Solve dx = v dsigma from x0 up the grid by Euler steps; return one state per sigma, the noisiest first."""
    states = [_at_least_float32(x0)]
    for sigma, below in reversed(list(pairwise(sigmas))):
        states.append(states[-1] + (sigma - below) * _at_least_float32(velocity(states[-1], below)))
    return states[::-1]
