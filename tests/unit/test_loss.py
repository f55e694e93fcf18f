"""The clipped loss and its relatives against float64 loops: values, gradients in every case, metrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import reference
from torch import Tensor
from torch.distributions import Normal

from mixgrpo.flow.steps import Gaussian
from mixgrpo.rl.loss import LossOutput, divergence_masked_loss, gaussian_kl, grpo_loss, normalised_log_ratio

CLIP = 0.1
BOUND = 0.25  # of divergences; exact in binary, so that one can lie on it
LOG_RATIOS = {"below": math.log(0.8), "inside, below": math.log(0.95), "one": 0.0, "above": math.log(1.3)}
ADVANTAGES = {"good": 1.7, "neutral": 0.0, "bad": -0.6}


def tensors(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def loss_and_gradient(
    new: list[float], old: list[float], advantage: list[float], clip_range: float
) -> tuple[LossOutput, Tensor]:
    log_prob, old_log_prob, advantages = tensors(new, old, advantage)
    log_prob.requires_grad_()
    output = grpo_loss(log_prob, old_log_prob, advantages, clip_range=clip_range)
    output.loss.backward()
    assert log_prob.grad is not None
    return output, log_prob.grad


@pytest.mark.parametrize("where", LOG_RATIOS)
@pytest.mark.parametrize("kind", ADVANTAGES)
def test_loss_and_gradient_of_a_single_sample(where: str, kind: str) -> None:
    """The gradient is gone only where moving further would be rewarded: above for good, below for bad."""
    ratio, advantage = math.exp(LOG_RATIOS[where]), ADVANTAGES[kind]
    output, gradient = loss_and_gradient([LOG_RATIOS[where] - 1.0], [-1.0], [advantage], CLIP)
    stopped = (where, kind) in {("above", "good"), ("below", "bad")}
    bounded = {"above": 1.1, "below": 0.9}.get(where, ratio)
    assert output.loss.item() == pytest.approx(-(bounded if stopped else ratio) * advantage, rel=1e-12)
    assert gradient.item() == pytest.approx(0.0 if stopped else -ratio * advantage, rel=1e-12)
    assert output.metrics["clip_fraction"].item() == float(stopped)


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.floats(-0.5, 0.5), st.floats(-5, 5)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([1e-4, 0.05, 0.2]),
)
def test_loss_gradient_and_metrics_equal_a_loop_in_float64(
    rows: list[tuple[float, float, float]], clip_range: float
) -> None:
    old, change, advantage = (list(column) for column in zip(*rows, strict=True))
    new = [o + c for o, c in zip(old, change, strict=True)]
    expected = reference.grpo(new, old, advantage, clip_range)
    output, gradient = loss_and_gradient(new, old, advantage, clip_range)
    assert output.loss.item() == pytest.approx(expected.loss, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradient, expected.gradient, rtol=1e-9, atol=1e-12)
    metrics = {name: value.item() for name, value in output.metrics.items()}
    assert metrics["ratio_mean"] == pytest.approx(sum(expected.ratios) / len(rows))
    assert metrics["ratio_max"] == pytest.approx(max(expected.ratios))
    assert metrics["clip_fraction"] == pytest.approx(expected.clip_fraction)
    assert metrics["advantage_mean"] == pytest.approx(sum(advantage) / len(rows), abs=1e-12)
    assert metrics["advantage_abs_mean"] == pytest.approx(sum(map(abs, advantage)) / len(rows))


def test_first_update_has_ratio_exactly_one_and_the_plain_policy_gradient() -> None:
    advantages = torch.randn(9)
    log_prob = torch.randn(9, requires_grad=True)
    output = grpo_loss(log_prob, log_prob.detach(), advantages, clip_range=1e-4)
    output.loss.backward()
    assert output.metrics["ratio_mean"].item() == 1.0
    assert output.metrics["ratio_max"].item() == 1.0
    assert output.metrics["clip_fraction"].item() == 0.0
    torch.testing.assert_close(output.loss, -advantages.mean())
    torch.testing.assert_close(log_prob.grad, -advantages / 9)


def test_ratio_on_the_edge_of_the_clip_range_keeps_its_gradient() -> None:
    """0.5 and 1.5 are exact in binary, so the ratio equals the bound."""
    log_prob = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    old = -torch.tensor([0.5, 1.5], dtype=torch.float64).log()
    output = grpo_loss(log_prob, old, torch.tensor([-1.0, 1.0], dtype=torch.float64), clip_range=0.5 + 1e-12)
    output.loss.backward()
    assert log_prob.grad is not None
    np.testing.assert_allclose(log_prob.grad, [0.25, -0.75], rtol=1e-9)


def test_small_clip_ranges_survive_float32() -> None:
    """With clip range 1e-4 a ratio of 1.0002 must be seen as outside and one of 1.00005 as inside."""
    old = torch.full((2,), -1.2)
    log_prob = (old + torch.tensor([2e-4, 5e-5])).requires_grad_()
    output = grpo_loss(log_prob, old, torch.ones(2), clip_range=1e-4)
    output.loss.backward()
    assert output.metrics["clip_fraction"].item() == 0.5
    assert log_prob.grad is not None
    assert log_prob.grad[0] == 0
    assert log_prob.grad[1].item() == pytest.approx(-0.5, rel=1e-3)


def test_no_gradient_flows_into_the_old_policy_and_metrics_are_detached() -> None:
    old = torch.zeros(3, requires_grad=True)
    log_prob = torch.full((3,), 0.01, requires_grad=True)
    output = grpo_loss(log_prob, old, torch.ones(3), clip_range=0.2)
    output.loss.backward()
    assert old.grad is None
    assert not any(value.requires_grad for value in output.metrics.values())


@pytest.mark.parametrize("clip_range", [0.0, -0.1, math.nan])
def test_clip_range_must_be_positive(clip_range: float) -> None:
    with pytest.raises(ValueError, match="clip_range"):
        grpo_loss(torch.zeros(2), torch.zeros(2), torch.ones(2), clip_range=clip_range)


def test_kl_of_two_kernels_is_the_expected_difference_of_their_log_densities() -> None:
    """Gauss-Hermite quadrature of the definition, per dimension, then the mean over dimensions."""
    rng = np.random.default_rng(0)
    mean, other = rng.standard_normal((2, 3, 4))
    std = 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    expected = np.zeros(3)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        x = mean + std * node
        expected += weight * (
            reference.gaussian_log_density(x, mean, std) - reference.gaussian_log_density(x, other, std)
        )
    result = gaussian_kl(Gaussian(torch.from_numpy(mean), std), Gaussian(torch.from_numpy(other), std))
    np.testing.assert_allclose(result, expected, rtol=1e-10)


def test_kl_of_a_kernel_to_itself_is_zero() -> None:
    kernel = Gaussian(torch.randn(3, 4), 0.2)
    assert torch.equal(gaussian_kl(kernel, kernel), torch.zeros(3))


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


def kernels(std: float) -> tuple[Tensor, Tensor, Tensor]:
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
