"""Losses on the forward process against the papers' formulas in numpy, with gradients in closed form."""

import math

import numpy as np
import pytest
import torch
from parity.reference import Array
from torch import Tensor

from mixgrpo.rl.forward import matching_log_prob, nft_loss, velocity_distance

ADVANTAGES = [-7.0, -2.0, 0.0, 1.0, 5.0, 9.0]
SHAPE = (len(ADVANTAGES), 3, 2)
SIGMA, SCALE = 0.7, 5.0


def drawn() -> tuple[Array, Array, Array, Array]:
    """x0, noise, the policy's velocity and the sampling policy's."""
    rng = np.random.default_rng(0)
    x0, noise, change, off = rng.standard_normal((4, *SHAPE))
    old = noise - x0 + 0.5 * off
    return x0, noise, old + 0.3 * change, old


def nft_by_hand(x0: Array, noise: Array, v: Array, old: Array, *, beta: float) -> tuple[float, Array]:
    """The loss as published, by the errors of the two predicted x0, and its gradient by v with the norms held."""
    x = (1 - SIGMA) * x0 + SIGMA * noise
    total, gradient = 0.0, np.zeros(SHAPE)
    for i, advantage in enumerate(ADVANTAGES):
        r = float(np.clip(advantage / SCALE / 2 + 0.5, 0.0, 1.0))
        for share, implicit, slope in (
            (r, (1 - beta) * old[i] + beta * v[i], beta),
            (1 - r, (1 + beta) * old[i] - beta * v[i], -beta),
        ):
            error = x[i] - SIGMA * implicit - x0[i]
            norm = max(np.abs(error).mean(), 1e-5)
            total += share * (error**2).mean() / norm / len(ADVANTAGES)
            gradient[i] += share * 2 * error * (-SIGMA * slope) / norm / error.size / len(ADVANTAGES)
    return total, gradient


def nft(x0: Array, noise: Array, v: Array, old: Array, *, beta: float) -> tuple[float, Array, dict[str, Tensor]]:
    leaf = torch.from_numpy(v).requires_grad_()
    old_leaf = torch.from_numpy(old).requires_grad_()
    loss, metrics = nft_loss(
        leaf,
        old_leaf,
        torch.from_numpy(noise - x0),
        torch.tensor(ADVANTAGES, dtype=torch.float64),
        sigma=SIGMA,
        beta=beta,
        advantage_scale=SCALE,
    )
    loss.backward()
    assert leaf.grad is not None
    assert old_leaf.grad is None
    assert not any(value.requires_grad for value in metrics.values())
    return loss.item(), leaf.grad.numpy(), metrics


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_loss_and_gradient_of_two_implicit_policies(beta: float) -> None:
    x0, noise, v, old = drawn()
    loss, gradient, metrics = nft(x0, noise, v, old, beta=beta)
    expected, slope = nft_by_hand(x0, noise, v, old, beta=beta)
    assert loss == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-14)
    assert metrics["optimality_mean"].item() == pytest.approx(np.mean([0.0, 0.3, 0.5, 0.6, 1.0, 1.0]))
    assert metrics["old_distance"].item() == pytest.approx(((v - old) ** 2).mean())


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_gradient_at_the_sampling_policy_is_the_advantage_times_the_matching_error(beta: float) -> None:
    """At v = old_v both implicit policies are one: 2 beta sigma (2 r - 1) e / (d mean|e|), e = old_v - target."""
    x0, noise, _, old = drawn()
    _, gradient, _ = nft(x0, noise, old, old, beta=beta)
    error = old - (noise - x0)
    size = np.abs(error).mean(axis=(1, 2), keepdims=True)
    good = np.clip(np.array(ADVANTAGES) / SCALE, -1.0, 1.0)[:, None, None]
    closed_form = good * 2 * beta * SIGMA * error / (size * error[0].size * len(ADVANTAGES))
    np.testing.assert_allclose(gradient, closed_form, rtol=1e-9, atol=1e-14)
    assert np.abs(gradient[ADVANTAGES.index(0.0)]).max() < 1e-15, "a middling sample pulls nowhere"


def test_a_good_sample_pulls_towards_its_velocity_and_a_bad_one_pushes_away() -> None:
    x0, noise, _, old = drawn()
    _, gradient, _ = nft(x0, noise, old, old, beta=1.0)
    towards = -(gradient * (noise - x0 - old)).sum((1, 2))
    assert [math.copysign(1.0, value) for value in towards[[0, 1, 3, 4]]] == [-1.0, -1.0, 1.0, 1.0]


def test_an_error_near_zero_does_not_blow_the_loss_up() -> None:
    """Below a mean error of 1e-5 the norm stays there, so the loss and its gradient go to 0."""
    x0, noise, _, _ = drawn()
    exact = noise - x0
    loss, gradient, _ = nft(x0, noise, exact, exact, beta=1.0)
    assert (loss, np.abs(gradient).max()) == (0.0, 0.0)
    close = exact + 1e-6
    loss, gradient, _ = nft(x0, noise, close, close, beta=1.0)
    assert loss == pytest.approx((SIGMA * 1e-6) ** 2 / 1e-5, rel=1e-6)
    assert np.abs(gradient).max() == pytest.approx(2 * SIGMA**2 * 1e-6 / 1e-5 / 36, rel=1e-6)


@pytest.mark.parametrize(("beta", "scale"), [(0.0, 5.0), (-1.0, 5.0), (1.0, 0.0), (math.nan, 5.0), (1.0, math.nan)])
def test_strengths_must_be_positive(beta: float, scale: float) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="beta and advantage_scale"):
        nft_loss(x, x, x, torch.zeros(1), sigma=0.5, beta=beta, advantage_scale=scale)


def test_matching_log_prob_is_minus_the_mean_squared_error_and_pulls_to_the_target() -> None:
    x0, noise, v, _ = drawn()
    leaf = torch.from_numpy(v).requires_grad_()
    result = matching_log_prob(leaf, torch.from_numpy(noise - x0))
    np.testing.assert_allclose(result.detach(), [-np.mean(row**2) for row in v - (noise - x0)], rtol=1e-12)
    result.sum().backward()
    np.testing.assert_allclose(leaf.grad, -2 * (v - (noise - x0)) / 6, rtol=1e-12)


def test_velocity_distance_is_a_mean_square_of_each_sample() -> None:
    _, _, v, old = drawn()
    result = velocity_distance(torch.from_numpy(v), torch.from_numpy(old))
    np.testing.assert_allclose(result, [np.mean(row**2) for row in v - old], rtol=1e-12)
