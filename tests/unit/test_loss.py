"""The clipped loss against a float64 loop: values, gradients in every case of the clip, metrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import reference
from torch import Tensor

from mixgrpo.flow.steps import Gaussian
from mixgrpo.rl.loss import LossOutput, gaussian_kl, grpo_loss

CLIP = 0.1
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
