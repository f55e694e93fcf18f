"""The ODE step, the four kernels and the log-density against the papers' formulas in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.flow.steps import (
    Gaussian,
    cps_kernel,
    dance_sde_kernel,
    flow_sde_kernel,
    gddim_kernel,
    log_prob,
    ode_step,
)
from parity import reference
from parity.schedulers import diffusers_solver

KERNELS: dict[str, Callable[..., Gaussian]] = {
    "flow_sde": flow_sde_kernel,
    "dance_sde": dance_sde_kernel,
    "cps": cps_kernel,
    "gddim": gddim_kernel,
}
ETA = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.7, "gddim": 0.7}
SCHEDULE = reference.shifted_schedule(25, 3.0).tolist()
INNER_STEPS = [(0.97, 0.9), (0.6, 0.55), (0.31, 0.02), (SCHEDULE[23], SCHEDULE[24])]
FIRST_STEPS = [(1.0, SCHEDULE[1]), (1.0, 0.5)]
LAST_STEPS = [(SCHEDULE[24], 0.0)]
LATENT = (4, 3, 5)

every_kernel = pytest.mark.parametrize("name", KERNELS)
every_step = pytest.mark.parametrize(("sigma", "sigma_next"), INNER_STEPS + FIRST_STEPS + LAST_STEPS)
inner_step = pytest.mark.parametrize(("sigma", "sigma_next"), INNER_STEPS)


def latents(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x, v = rng.standard_normal((2, *LATENT))
    return torch.from_numpy(x).to(dtype), torch.from_numpy(v).to(dtype)


def kept_noise(name: str, sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """What a kernel makes of data 0 and noise 1: the weight of predicted noise, and its standard deviation."""
    one = torch.ones(1, 1, dtype=torch.float64)
    mean, std = KERNELS[name](sigma * one, one, sigma=sigma, sigma_next=sigma_next, eta=eta)
    return mean.item(), std


@every_step
def test_ode_step_is_euler(sigma: float, sigma_next: float) -> None:
    x, v = latents(1)
    keep, _ = reference.euler(sigma, sigma_next, 0.0)
    expected = reference.step_mean(x.numpy(), v.numpy(), sigma, sigma_next, keep)
    np.testing.assert_allclose(ode_step(x, v, sigma=sigma, sigma_next=sigma_next), expected, rtol=0, atol=1e-14)


@every_kernel
@every_step
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_kernel_equals_the_formula_of_its_paper(name: str, sigma: float, sigma_next: float, eta: float) -> None:
    x, v = latents(2)
    keep, std = reference.COEFFICIENTS[name](sigma, sigma_next, eta)
    expected = reference.step_mean(x.numpy(), v.numpy(), sigma, sigma_next, keep)
    kernel = KERNELS[name](x, v, sigma=sigma, sigma_next=sigma_next, eta=eta)
    np.testing.assert_allclose(kernel.mean, expected, rtol=0, atol=1e-12)
    assert kernel.std == pytest.approx(std, rel=1e-10, abs=1e-14)


@every_kernel
@every_step
def test_kernel_of_bfloat16_latents_computes_in_float32(name: str, sigma: float, sigma_next: float) -> None:
    x, v = latents(3, torch.bfloat16)
    keep, _ = reference.COEFFICIENTS[name](sigma, sigma_next, ETA[name])
    expected = reference.step_mean(x.double().numpy(), v.double().numpy(), sigma, sigma_next, keep)
    mean = KERNELS[name](x, v, sigma=sigma, sigma_next=sigma_next, eta=ETA[name]).mean
    assert mean.dtype == torch.float32
    np.testing.assert_allclose(mean, expected, rtol=0, atol=3e-6)


def test_ode_step_and_log_prob_of_bfloat16_latents_compute_in_float32() -> None:
    x, v = latents(4, torch.bfloat16)
    stepped = ode_step(x, v, sigma=0.8, sigma_next=0.75)
    assert stepped.dtype == torch.float32
    np.testing.assert_allclose(stepped, x.double().numpy() - 0.05 * v.double().numpy(), rtol=0, atol=1e-6)
    density = log_prob(flow_sde_kernel(x, v, sigma=0.8, sigma_next=0.75, eta=0.7), x)
    assert density.dtype == torch.float32


def test_kernel_of_float32_latents_and_a_bfloat16_velocity_keeps_the_latents_precise() -> None:
    x, v = latents(5, torch.float32)
    mean = flow_sde_kernel(x, v.bfloat16(), sigma=0.8, sigma_next=0.75, eta=0.7).mean
    exact = flow_sde_kernel(x, v.bfloat16().float(), sigma=0.8, sigma_next=0.75, eta=0.7).mean
    assert mean.dtype == torch.float32
    assert torch.equal(mean, exact)


@pytest.mark.parametrize("sigma_next", [0.9863, 0.7, 0.2])
def test_flow_sde_starts_with_a_standard_deviation_of_exactly_eta(sigma_next: float) -> None:
    x, v = latents(6)
    mean, std = flow_sde_kernel(x, v, sigma=1.0, sigma_next=sigma_next, eta=0.7)
    assert std == pytest.approx(0.7, rel=1e-14)
    np.testing.assert_allclose(mean, (1 - 0.7**2 / 2) * x - (1 - sigma_next) * v, rtol=0, atol=1e-14)


@every_kernel
@every_step
def test_kernel_gives_predicted_data_the_weight_of_the_next_sigma(name: str, sigma: float, sigma_next: float) -> None:
    data = torch.ones(1, 1, dtype=torch.float64)
    mean = KERNELS[name]((1 - sigma) * data, -data, sigma=sigma, sigma_next=sigma_next, eta=ETA[name]).mean
    assert mean.item() == pytest.approx(1 - sigma_next, rel=1e-14)


@pytest.mark.parametrize("name", ["cps", "gddim"])
@every_step
def test_coefficient_preserving_kernels_keep_the_noise_level_exactly(
    name: str, sigma: float, sigma_next: float
) -> None:
    keep, std = kept_noise(name, sigma, sigma_next, 0.7)
    assert keep**2 + std**2 == pytest.approx(sigma_next**2, rel=1e-13, abs=1e-30)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde"])
@every_step
def test_euler_maruyama_kernels_have_the_known_excess_of_noise(name: str, sigma: float, sigma_next: float) -> None:
    keep, std = kept_noise(name, sigma, sigma_next, ETA[name])
    new = std**2
    excess = new * (sigma - sigma_next) / sigma + (new / (2 * sigma)) ** 2
    assert keep**2 + new == pytest.approx(sigma_next**2 + excess, rel=1e-13)
    assert excess > 0


@pytest.mark.parametrize(
    ("name", "sigma", "sigma_next"),
    [
        (name, *step)
        for name in KERNELS
        for step in INNER_STEPS + FIRST_STEPS
        if not (name == "gddim" and step in FIRST_STEPS)  # there it draws all noise anew, whatever eta: next test
    ],
)
def test_kernel_becomes_the_ode_step_as_eta_vanishes(name: str, sigma: float, sigma_next: float) -> None:
    x, v = latents(7)
    ode = ode_step(x, v, sigma=sigma, sigma_next=sigma_next)
    errors, stds = [], []
    for eta in (0.02, 0.01):
        mean, std = KERNELS[name](x, v, sigma=sigma, sigma_next=sigma_next, eta=eta)
        errors.append((mean - ode).abs().max().item())
        stds.append(std)
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.01)
    assert stds[0] / stds[1] == pytest.approx(2.0, rel=0.01)
    mean, std = KERNELS[name](x, v, sigma=sigma, sigma_next=sigma_next, eta=0.0)
    np.testing.assert_allclose(mean, ode, rtol=0, atol=1e-14)
    assert std == 0.0


@pytest.mark.parametrize("eta", [1e-3, 0.7, math.sqrt(2)])
def test_gddim_draws_all_noise_anew_at_sigma_one(eta: float) -> None:
    x, v = latents(8)
    mean, std = gddim_kernel(x, v, sigma=1.0, sigma_next=0.9, eta=eta)
    np.testing.assert_allclose(mean, 0.1 * (x - v), rtol=0, atol=1e-14)
    assert std == pytest.approx(0.9, rel=1e-14)


@inner_step
def test_gddim_with_lambda_one_is_the_first_order_step_of_sde_dpmsolver_pp(sigma: float, sigma_next: float) -> None:
    x, v = latents(9, torch.float32)
    noise = torch.randn(LATENT)
    scheduler = diffusers_solver([sigma, sigma_next], algorithm_type="sde-dpmsolver++", solver_order=1)
    expected = scheduler.step(v, 0, x, variance_noise=noise, return_dict=False)[0]
    mean, std = gddim_kernel(x, v, sigma=sigma, sigma_next=sigma_next, eta=math.sqrt(2))
    np.testing.assert_allclose(mean + std * noise, expected, rtol=0, atol=2e-6)


@every_kernel
def test_log_prob_is_the_mean_log_density_over_latent_dimensions(name: str) -> None:
    x, v = latents(10)
    x_next, _ = latents(11)
    kernel = KERNELS[name](x, v, sigma=0.8, sigma_next=0.75, eta=ETA[name])
    expected = reference.gaussian_log_density(x_next.numpy(), kernel.mean.numpy(), kernel.std)
    density = log_prob(kernel, x_next)
    assert density.shape == (LATENT[0],)
    np.testing.assert_allclose(density, expected, rtol=1e-12)


def test_log_prob_of_a_sample_does_not_depend_on_the_rest_of_the_batch() -> None:
    x, v = latents(12)
    x_next, _ = latents(13)
    together = log_prob(flow_sde_kernel(x, v, sigma=0.8, sigma_next=0.75, eta=0.7), x_next)
    alone = log_prob(flow_sde_kernel(x[2:3], v[2:3], sigma=0.8, sigma_next=0.75, eta=0.7), x_next[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-14)


def test_log_prob_pulls_the_velocity_with_the_known_gradient() -> None:
    x, v = latents(14)
    x_next, _ = latents(15)
    v.requires_grad_()
    kernel = flow_sde_kernel(x, v, sigma=0.8, sigma_next=0.75, eta=0.7)
    log_prob(kernel, x_next).sum().backward()
    mean_by_v = (1 + 0.7**2 / 2) * (0.75 - 0.8)  # at sigma < 1, whatever sigma is
    expected = (x_next - kernel.mean.detach()) / kernel.std**2 * mean_by_v / x[0].numel()
    assert v.grad is not None
    np.testing.assert_allclose(v.grad, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["cps", "gddim"])
def test_log_prob_refuses_a_kernel_without_spread(name: str) -> None:
    x, v = latents(16)
    kernel = KERNELS[name](x, v, sigma=0.1, sigma_next=0.0, eta=0.7)
    assert kernel.std == 0.0
    with pytest.raises(ValueError, match="density"):
        log_prob(kernel, x)


@pytest.mark.parametrize(
    ("name", "step", "weight"),
    [
        ("flow_sde", 0, 0.0196),
        ("flow_sde", 1, 0.0252),
        ("flow_sde", 2, 0.0375),
        ("flow_sde", 5, 0.0695),
        ("flow_sde", 12, 0.171),
        ("flow_sde", 20, 0.523),
        ("flow_sde", 23, 1.08),
        ("dance_sde", 0, 0.39),
        ("dance_sde", 23, 1.21),
        ("cps", 0, 0.0156),
        ("cps", 23, 1.45),
        ("gddim", 0, 0.0139),
        ("gddim", 23, 1.80),
    ],
)
def test_weight_of_a_step_in_the_policy_gradient_has_the_known_value(name: str, step: int, weight: float) -> None:
    x, v = latents(17)
    sigma, sigma_next = SCHEDULE[step], SCHEDULE[step + 1]
    kernel = KERNELS[name](x, v, sigma=sigma, sigma_next=sigma_next, eta=ETA[name])
    moved = KERNELS[name](x, v + 1.0, sigma=sigma, sigma_next=sigma_next, eta=ETA[name])
    assert (kernel.mean - moved.mean).mean().item() / kernel.std == pytest.approx(weight, rel=0.005)


@every_kernel
@pytest.mark.parametrize(("sigma", "sigma_next"), [(0.5, 0.5), (0.4, 0.5), (1.1, 0.9), (0.5, -0.1)])
def test_kernel_refuses_a_step_that_does_not_go_down_within_the_unit_interval(
    name: str, sigma: float, sigma_next: float
) -> None:
    x, v = latents(18)
    with pytest.raises(ValueError, match="step"):
        KERNELS[name](x, v, sigma=sigma, sigma_next=sigma_next, eta=0.7)
    with pytest.raises(ValueError, match="step"):
        ode_step(x, v, sigma=sigma, sigma_next=sigma_next)
