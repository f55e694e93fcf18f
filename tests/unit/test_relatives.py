"""GRPO's relatives on one stochastic step: the mask by divergence, the normalised ratio, the weights of steps."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import reference
from torch.distributions import Normal

from mixgrpo.flow.steps import Gaussian
from mixgrpo.rl.loss import divergence_masked_loss, gaussian_kl, normalised_log_ratio
from mixgrpo.rl.weights import inverse_step_weights, noise_level_weights

BOUND = 0.25  # exact in binary, so that a divergence can lie on it


@pytest.mark.parametrize("divergence", [0.0, BOUND - 2**-20, BOUND, 1.0])
@pytest.mark.parametrize("log_ratio", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("advantage", [-1.5, 0.0, 1.5])
def test_a_sample_is_masked_when_it_is_far_and_would_go_further(
    divergence: float, log_ratio: float, advantage: float
) -> None:
    new = torch.tensor([log_ratio - 2.0], dtype=torch.float64, requires_grad=True)
    output = divergence_masked_loss(
        new,
        torch.tensor([-2.0], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        divergence=torch.tensor([divergence], dtype=torch.float64),
        max_divergence=BOUND,
    )
    output.loss.backward()
    masked = divergence >= BOUND and (log_ratio, advantage) in {(0.1, 1.5), (-0.1, -1.5)}
    ratio = math.exp(log_ratio)
    assert output.loss.item() == pytest.approx(0.0 if masked else -ratio * advantage, rel=1e-12)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.0 if masked else -ratio * advantage, rel=1e-12)
    assert output.metrics["clip_fraction"].item() == float(masked)


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.floats(-0.5, 0.5), st.floats(-5, 5), st.floats(0, 1)), min_size=1, max_size=12
    )
)
def test_masked_samples_stay_in_the_mean_as_zeros(rows: list[tuple[float, float, float, float]]) -> None:
    terms, slopes, masks = [], [], 0
    for old, new, advantage, divergence in ((o, o + c, a, d) for o, c, a, d in rows):
        r = math.exp(new - old)
        masked = divergence >= BOUND and ((r > 1 and advantage > 0) or (r < 1 and advantage < 0))
        terms.append(0.0 if masked else -r * advantage)
        slopes.append(0.0 if masked else -r * advantage / len(rows))
        masks += masked
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    old, change, advantages, divergence = columns
    new = (old + change).requires_grad_()
    old.requires_grad_()
    divergence.requires_grad_()
    output = divergence_masked_loss(new, old, advantages, divergence=divergence, max_divergence=BOUND)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(math.fsum(terms) / len(rows), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(new.grad, slopes, rtol=1e-9, atol=1e-12)
    assert old.grad is None
    assert divergence.grad is None
    assert output.metrics["clip_fraction"].item() == pytest.approx(masks / len(rows))
    ratios = [math.exp((o + c) - o) for o, c, _, _ in rows]
    assert output.metrics["ratio_mean"].item() == pytest.approx(sum(ratios) / len(rows))
    assert output.metrics["ratio_max"].item() == pytest.approx(max(ratios))
    assert output.metrics["advantage_abs_mean"].item() == pytest.approx(sum(abs(a) for _, _, a, _ in rows) / len(rows))
    assert not any(value.requires_grad for value in output.metrics.values())


@pytest.mark.parametrize("bound", [0.0, -0.1, math.nan])
def test_largest_divergence_must_be_positive(bound: float) -> None:
    with pytest.raises(ValueError, match="max_divergence"):
        divergence_masked_loss(
            torch.zeros(2), torch.zeros(2), torch.ones(2), divergence=torch.zeros(2), max_divergence=bound
        )


def kernels(std: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    old, shift, z = torch.randn(3, 5, 4, 3, generator=generator, dtype=torch.float64)
    return (old + 0.2 * shift).requires_grad_(), old.requires_grad_(), z


@pytest.mark.parametrize("std", [0.03, 0.4, 2.0])
def test_normalised_ratio_is_that_of_the_paper_and_the_change_times_the_noise(std: float) -> None:
    """std (log r + |dmean|^2 / (2 std^2)), and with x_next = old mean + std z simply the mean of dmean z."""
    mean, old_mean, z = kernels(std)
    x_next = (old_mean + std * z).detach()
    log_ratio = (Normal(mean, std).log_prob(x_next) - Normal(old_mean, std).log_prob(x_next)).mean((1, 2))
    change = (mean - old_mean).square().mean((1, 2))
    result = normalised_log_ratio(Gaussian(mean, std), Gaussian(old_mean, std), x_next)
    np.testing.assert_allclose(
        result.detach(), (std * (log_ratio + change / (2 * std**2))).detach(), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(result.detach(), ((mean - old_mean) * z).mean((1, 2)).detach(), rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(result.sum(), [mean])
    np.testing.assert_allclose(gradient, z / z[0].numel(), rtol=1e-9)


@pytest.mark.parametrize("std", [0.03, 0.4, 2.0])
def test_normalised_ratio_has_mean_zero_and_one_scale_under_the_old_policy(std: float) -> None:
    """By Monte Carlo; the plain log-ratio has mean -|dmean|^2 / (2 std^2), far from 0 at the small std."""
    draws, dims = 4000, 8
    generator = torch.Generator().manual_seed(5)
    old = torch.randn(1, dims, generator=generator, dtype=torch.float64).expand(draws, dims)
    change = torch.randn(dims, generator=generator, dtype=torch.float64)
    x_next = old + std * torch.randn(draws, dims, generator=generator, dtype=torch.float64)
    ratios = normalised_log_ratio(Gaussian(old + change, std), Gaussian(old, std), x_next)
    spread = math.sqrt((change**2).sum().item()) / dims
    assert abs(ratios.mean().item()) < 4 * spread / math.sqrt(draws)
    assert ratios.std().item() == pytest.approx(spread, rel=0.05)


def test_kernels_of_different_spread_are_refused() -> None:
    one, other = Gaussian(torch.zeros(2, 3), 0.1), Gaussian(torch.zeros(2, 3), 0.2)
    with pytest.raises(ValueError, match="one standard deviation"):
        normalised_log_ratio(one, other, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one standard deviation"):
        gaussian_kl(one, other)


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=30))
def test_weights_by_noise_are_in_its_proportion_and_one_on_average(stds: list[float]) -> None:
    weights = noise_level_weights(stds)
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0)
    np.testing.assert_allclose(np.array(weights) * stds[0], np.array(stds) * weights[0], rtol=1e-9)


@given(st.integers(2, 60), st.floats(0.2, 8.0))
def test_weights_by_length_even_steps_out_and_are_one_on_average(num_steps: int, shift: float) -> None:
    sigmas = reference.shifted_schedule(num_steps, shift).tolist()
    weights = inverse_step_weights(sigmas)
    assert len(weights) == num_steps
    assert math.fsum(weights) / num_steps == pytest.approx(1.0)
    products = [weight * (now - after) for weight, (now, after) in zip(weights, pairwise(sigmas), strict=True)]
    np.testing.assert_allclose(products, products[0], rtol=1e-9)


@pytest.mark.parametrize("stds", [[], [0.1, 0.0], [0.1, -0.2], [math.nan]])
def test_steps_without_noise_have_no_weight(stds: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        noise_level_weights(stds)


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.5, 0.0], [0.0, 1.0], [1.0, math.nan], [1.0], []])
def test_sigmas_that_do_not_fall_have_no_weights(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"fall|must be steps"):
        inverse_step_weights(sigmas)
