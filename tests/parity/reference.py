"""The mathematics a second time: float64 numpy, typed from the papers, without a line of `mixgrpo`.

Convention: sigma 1 is noise, 0 is data, x = (1 - sigma) x0 + sigma noise, v = noise - x0. Where there is a
choice, these versions take another road than the package does: kernels as coefficients of the two predictions
instead of a drift, gDDIM by quadrature of its rate instead of a closed form, the multistep solver by fitting a
polynomial and integrating it numerically instead of phi functions, advantages and losses in loops over floats.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad

Array = NDArray[np.float64]
Variant = Literal["midpoint", "heun", "corrected"]


def shifted_schedule(num_steps: int, shift: float) -> Array:
    """sigma = k u / (1 + (k - 1) u) for u = 1 ... 0."""
    u = np.linspace(1.0, 0.0, num_steps + 1)
    return shift * u / (1.0 + (shift - 1.0) * u)


def flash_schedule(num_steps: int, shift: float, window_stop: int, tail_steps: int) -> Array:
    """The original grid up to the window's end, then `tail_steps` even steps of time to 0, shifted."""
    u = np.linspace(1.0, 0.0, num_steps + 1)
    u = np.concatenate([u[:window_stop], np.linspace(u[window_stop], 0.0, tail_steps + 1)])
    return shift * u / (1.0 + (shift - 1.0) * u)


# One step: x' = (1 - sigma') x0hat + keep * noisehat + std * z


class Coefficients(NamedTuple):
    """Weight of the predicted noise, and of new noise."""

    keep: float
    std: float


def _subtract_and_add(sigma: float, sigma_next: float, new_variance: float) -> Coefficients:
    return Coefficients(sigma_next - new_variance / (2.0 * sigma), math.sqrt(new_variance))


def flow_sde(sigma: float, sigma_next: float, eta: float) -> Coefficients:
    """Flow-GRPO: g^2 = eta^2 sigma / (1 - sigma), at sigma 1 with sigma_next in the denominator."""
    denominator = 1.0 - sigma_next if sigma == 1.0 else 1.0 - sigma
    return _subtract_and_add(sigma, sigma_next, eta**2 * sigma / denominator * (sigma - sigma_next))


def dance_sde(sigma: float, sigma_next: float, eta: float) -> Coefficients:
    """DanceGRPO: g = eta."""
    return _subtract_and_add(sigma, sigma_next, eta**2 * (sigma - sigma_next))


def cps(sigma: float, sigma_next: float, eta: float) -> Coefficients:
    """Flow-CPS: rotate the noise by eta quarter turns."""
    del sigma
    return Coefficients(sigma_next * math.cos(math.pi * eta / 2.0), sigma_next * math.sin(math.pi * eta / 2.0))


def gddim(sigma: float, sigma_next: float, eta: float) -> Coefficients:
    """Exact for a fixed prediction: d(share of new noise) = g^2 / u^2 (1 - share) du, g as Flow-GRPO."""
    if eta == 0.0:
        return Coefficients(sigma_next, 0.0)
    if sigma == 1.0 or sigma_next == 0.0:  # the rate's integral diverges: everything is drawn anew
        return Coefficients(0.0, sigma_next)
    rate = quad(lambda u: eta**2 / (u * (1.0 - u)), sigma_next, sigma, epsabs=0.0, epsrel=1e-12)[0]
    kept = math.exp(-rate / 2.0)
    return Coefficients(sigma_next * kept, sigma_next * math.sqrt(1.0 - kept**2))


def euler(sigma: float, sigma_next: float, eta: float) -> Coefficients:
    """The ODE keeps all noise."""
    del sigma, eta
    return Coefficients(sigma_next, 0.0)


COEFFICIENTS: dict[str, Callable[[float, float, float], Coefficients]] = {
    "ode": euler,
    "flow_sde": flow_sde,
    "dance_sde": dance_sde,
    "cps": cps,
    "gddim": gddim,
}


def step_mean(x: Array, v: Array, sigma: float, sigma_next: float, keep: float) -> Array:
    """The mean of a step, from the two predictions."""
    data, noise = x - sigma * v, x + (1.0 - sigma) * v
    return (1.0 - sigma_next) * data + keep * noise


def gaussian_log_density(x: Array, mean: Array, std: float) -> Array:
    """Mean over all but the first dimension of the log-density of N(mean, std^2)."""
    density = np.log(1.0 / (std * math.sqrt(2.0 * math.pi))) - (x - mean) ** 2 / (2.0 * std**2)
    return density.reshape(len(x), -1).mean(axis=1)


# Data whose velocity is known


class GaussianData(NamedTuple):
    """x0 ~ N(mean, variance): at sigma it is N((1 - sigma) mean, (1 - sigma)^2 variance + sigma^2)."""

    mean: float
    variance: float

    def marginal_variance(self, sigma: float) -> float:
        """Variance of x at sigma."""
        return (1.0 - sigma) ** 2 * self.variance + sigma**2

    def slope(self, sigma: float) -> float:
        """d velocity / d x."""
        return (sigma - (1.0 - sigma) * self.variance) / self.marginal_variance(sigma)

    def velocity(self, x: Array, sigma: float) -> Array:
        """E[noise - x0 | x]."""
        return -self.mean + self.slope(sigma) * (x - (1.0 - sigma) * self.mean)

    def flow(self, x: Array, sigma: float, sigma_next: float) -> Array:
        """Solution of the ODE from sigma to sigma_next: standardised positions stay."""
        scale = math.sqrt(self.marginal_variance(sigma_next) / self.marginal_variance(sigma))
        return (1.0 - sigma_next) * self.mean + scale * (x - (1.0 - sigma) * self.mean)

    def sampled_variance(self, sigmas: Sequence[float], kernels: Sequence[str], eta: float) -> float:
        """Variance at the end of a trajectory that starts as N(0, 1), by recursion (mean must be 0)."""
        variance = 1.0
        for sigma, sigma_next, kernel in zip(sigmas[:-1], sigmas[1:], kernels, strict=True):
            keep, std = COEFFICIENTS[kernel](sigma, sigma_next, eta)
            one = np.ones(1)
            factor = step_mean(one, self.velocity(one, sigma), sigma, sigma_next, keep)[0]
            variance = factor**2 * variance + std**2
        return variance


class TwoGaussians(NamedTuple):
    """x0 is N(means[k], stds[k]^2) with probability weights[k]."""

    weights: tuple[float, float]
    means: tuple[float, float]
    stds: tuple[float, float]

    def velocity(self, x: Array, sigma: float) -> Array:
        """E[noise - x0 | x]: the components' velocities, weighted by how likely x is to come from each."""
        velocities, log_weights = [], []
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            part = GaussianData(mean, std**2)
            variance = part.marginal_variance(sigma)
            velocities.append(part.velocity(x, sigma))
            log_weights.append(
                math.log(weight) - 0.5 * math.log(variance) - (x - (1.0 - sigma) * mean) ** 2 / (2.0 * variance)
            )
        share = 1.0 / (1.0 + np.exp(log_weights[1] - log_weights[0]))
        return share * velocities[0] + (1.0 - share) * velocities[1]


# The multistep solver

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def log_snr(sigma: float) -> float:
    """lambda = log(alpha / sigma), infinite at the ends."""
    if sigma == 1.0:
        return -math.inf
    return math.inf if sigma == 0.0 else math.log1p(-sigma) - math.log(sigma)


def multistep(
    x: Array,
    predictions: Sequence[tuple[float, Array]],
    sigma: float,
    sigma_next: float,
    *,
    order: int,
    variant: Variant = "midpoint",
) -> Array:
    """One exponential step: x' = (sigma'/sigma) x + alpha' int_0^h e^(tau - h) x0hat(lambda + tau) dtau.

    x0hat(lambda) is the polynomial of degree order - 1 through the latest of `predictions`, (sigma, x0hat) oldest
    first, the last of them at `sigma`. Predictions at sigma 1 are infinitely far in lambda and tell only the
    value. A line is integrated exactly by "heun" and "corrected"; "midpoint" takes its value at half the step. A
    parabola is integrated exactly by "corrected"; the other two, as the published codes, take half of its
    quadratic term.
    """
    assert predictions[-1][0] == sigma
    latest = predictions[-1][1]
    if sigma_next == 0.0:
        return latest
    alpha_next = 1.0 - sigma_next
    if sigma == 1.0:
        return sigma_next * x + alpha_next * latest
    used = [(log_snr(s) - log_snr(sigma), m) for s, m in predictions[-order:] if s < 1.0]
    h = log_snr(sigma_next) - log_snr(sigma)
    times = np.array([time for time, _ in used])
    values = np.stack([m for _, m in used])
    flat_powers = np.linalg.solve(np.vander(times / h, increasing=True), values.reshape(len(used), -1))
    powers = flat_powers.reshape(values.shape)  # coefficients of (tau / h)^k
    if variant == "midpoint" and len(predictions[-order:]) == 2 == len(used):
        integral = -math.expm1(-h) * (powers[0] + 0.5 * powers[1])
    else:
        if len(used) == 3 and variant != "corrected":
            powers[2] *= 0.5
        u = (_NODES + 1.0) / 2.0  # tau / h
        weights = _WEIGHTS / 2.0 * h * np.exp(h * (u - 1.0))
        integral = sum((weights * u**k).sum() * coefficient for k, coefficient in enumerate(powers))
    return (sigma_next / sigma) * x + alpha_next * integral


# A whole sample


def sample(
    velocity: Callable[[Array, float], Array],
    x: Array,
    sigmas: Sequence[float],
    noise: Mapping[int, Array],
    *,
    kernel: str,
    eta: float,
    tail_order: int = 1,
    tail_variant: Variant = "midpoint",
) -> tuple[Array, dict[int, tuple[Array, Array]]]:
    """One trajectory: steps in `noise` are stochastic, later ones are `multistep`, earlier ones Euler.

    Returns the final x, and (x, x_next) of each stochastic step.
    """
    predictions: list[tuple[float, Array]] = []
    transitions: dict[int, tuple[Array, Array]] = {}
    last_stochastic = max(noise, default=-1)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = velocity(x, sigma)
        predictions.append((sigma, x - sigma * v))
        if step in noise:
            keep, std = COEFFICIENTS[kernel](sigma, sigma_next, eta)
            x_next = step_mean(x, v, sigma, sigma_next, keep) + std * noise[step]
            transitions[step] = (x, x_next)
        elif step < last_stochastic:
            x_next = x + (sigma_next - sigma) * v
        else:
            x_next = multistep(x, predictions, sigma, sigma_next, order=tail_order, variant=tail_variant)
        x = x_next
    return x, transitions


# Reinforcement learning


def _normalised(scores: Sequence[float], good: Sequence[int]) -> list[float]:
    result = [0.0] * len(scores)
    if len(good) >= 2:
        mean = math.fsum(scores[i] for i in good) / len(good)
        variance = math.fsum((scores[i] - mean) ** 2 for i in good) / len(good)
        if len({scores[i] for i in good}) > 1:
            for i in good:
                result[i] = (scores[i] - mean) / math.sqrt(variance)
    return result


def advantages(
    scores: Mapping[str, Array],
    weights: Mapping[str, float],
    *,
    mix: Literal["advantages", "rewards"],
    clip: float,
) -> list[list[float]]:
    """Advantages of [P][G] samples, one group at a time."""
    names = [name for name in scores if weights[name] > 0]
    num_prompts, group_size = next(iter(scores.values())).shape
    rows = []
    for p in range(num_prompts):
        group = {name: [float(score) for score in scores[name][p]] for name in names}
        good = [i for i in range(group_size) if all(math.isfinite(group[name][i]) for name in names)]
        if mix == "advantages":
            each = [_normalised(group[name], good) for name in names]
            row = [sum(weights[name] * a[i] for name, a in zip(names, each, strict=True)) for i in range(group_size)]
        else:
            row = _normalised([sum(weights[name] * group[name][i] for name in names) for i in range(group_size)], good)
        rows.append([max(-clip, min(clip, a)) for a in row])
    return rows


class GrpoLoss(NamedTuple):
    """Clipped loss, its derivative by every log-prob, the ratios, the share whose derivative was clipped."""

    loss: float
    gradient: list[float]
    ratios: list[float]
    clip_fraction: float


def grpo(
    log_prob: Sequence[float], old_log_prob: Sequence[float], advantage: Sequence[float], clip_range: float
) -> GrpoLoss:
    """-mean(min(r A, clip(r, 1 - e, 1 + e) A)), r = exp(log_prob - old)."""
    terms, gradient, ratios, clipped = [], [], [], 0
    for new, old, a in zip(log_prob, old_log_prob, advantage, strict=True):
        r = math.exp(new - old)
        bounded = max(1.0 - clip_range, min(1.0 + clip_range, r))
        free = r * a <= bounded * a  # the ratio itself is the smaller surrogate: gradient flows
        terms.append(-min(r * a, bounded * a))
        gradient.append(-r * a / len(log_prob) if free else 0.0)
        ratios.append(r)
        clipped += not free
    return GrpoLoss(math.fsum(terms) / len(terms), gradient, ratios, clipped / len(ratios))
