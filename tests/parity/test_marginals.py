"""What the kernels do to a distribution that is known: data N(0, 1/4) with its exact velocity, shift 3.

The expected variances are a table computed once in float64 by a recursion written by hand; with many steps they
should come to 0.25. CPS alone does not: it draws a fixed share of the noise anew in every step, however small.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import plan_trajectory
from mixgrpo.flow.rollout import rollout
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.flow.steps import (
    Gaussian,
    cps_kernel,
    dance_sde_kernel,
    flow_sde_kernel,
    gddim_kernel,
    ode_step,
)
from parity import reference

DATA = reference.GaussianData(mean=0.0, variance=0.25)
DIRAC = reference.GaussianData(mean=0.0, variance=0.0)
Step = Callable[..., Gaussian]


def deterministic(x: Tensor, v: Tensor, *, sigma: float, sigma_next: float) -> Gaussian:
    return Gaussian(ode_step(x, v, sigma=sigma, sigma_next=sigma_next), 0.0)


STEPS: dict[str, Step] = {
    "ode": deterministic,
    "flow_sde": partial(flow_sde_kernel, eta=0.7),
    "dance_sde": partial(dance_sde_kernel, eta=0.3),
    "cps": partial(cps_kernel, eta=0.7),
    "gddim": partial(gddim_kernel, eta=0.7),
}


def final_variance(sigmas: Sequence[float], steps: Sequence[Step], data: reference.GaussianData = DATA) -> float:
    """Push N(0, 1) through linear steps: their means are factors times x, so variances follow exactly."""
    one = torch.ones(1, 1, dtype=torch.float64)
    variance = 1.0
    for sigma, sigma_next, step in zip(sigmas[:-1], sigmas[1:], steps, strict=True):
        mean, std = step(one, data.slope(sigma) * one, sigma=sigma, sigma_next=sigma_next)
        variance = mean.item() ** 2 * variance + std**2
    return variance


@pytest.mark.parametrize(
    ("num_steps", "kernel", "variance"),
    [
        (10, "ode", 0.137),
        (10, "flow_sde", 0.180),
        (10, "dance_sde", 0.148),
        (10, "cps", 0.107),
        (10, "gddim", 0.129),
        (25, "ode", 0.198),
        (25, "flow_sde", 0.218),
        (25, "dance_sde", 0.203),
        (25, "cps", 0.142),
        (25, "gddim", 0.188),
        (100, "ode", 0.236),
        (100, "flow_sde", 0.242),
        (100, "dance_sde", 0.237),
        (100, "cps", 0.167),
        (100, "gddim", 0.232),
    ],
)
def test_variance_after_a_stochastic_trajectory_is_as_tabulated(num_steps: int, kernel: str, variance: float) -> None:
    result = final_variance(shifted_sigmas(num_steps, 3.0), [STEPS[kernel]] * num_steps)
    assert abs(result - variance) < 5.1e-4


@pytest.mark.parametrize(
    ("start", "kernel", "variance"),
    [
        (0, "flow_sde", 0.218),
        (0, "cps", 0.198),
        (0, "gddim", 0.198),
        (6, "flow_sde", 0.201),
        (6, "cps", 0.197),
        (6, "gddim", 0.198),
        (12, "flow_sde", 0.202),
        (12, "cps", 0.192),
        (12, "gddim", 0.197),
        (18, "flow_sde", 0.206),
        (18, "cps", 0.160),
        (18, "gddim", 0.194),
        (20, "flow_sde", 0.206),
        (20, "cps", 0.145),
        (20, "gddim", 0.189),
    ],
)
def test_variance_after_a_window_of_four_stochastic_steps_is_as_tabulated(
    start: int, kernel: str, variance: float
) -> None:
    steps = [STEPS[kernel] if start <= i < start + 4 else deterministic for i in range(25)]
    assert abs(final_variance(shifted_sigmas(25, 3.0), steps) - variance) < 5.1e-4


@pytest.mark.parametrize("kernel", ["ode", "dance_sde", "gddim"])
def test_kernel_keeps_the_marginal_as_steps_get_smaller_with_first_order(kernel: str) -> None:
    errors = [abs(final_variance(shifted_sigmas(n, 3.0), [STEPS[kernel]] * n) - 0.25) for n in (200, 400, 800)]
    assert errors[2] < 0.003
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.15)


def test_flow_sde_comes_close_to_the_marginal_without_a_clean_order() -> None:
    """Its first step from sigma 1 adds eta^4 / 4 of variance on any grid; later noise makes it forget."""
    errors = [final_variance(shifted_sigmas(n, 3.0), [STEPS["flow_sde"]] * n) - 0.25 for n in (200, 800)]
    assert errors == pytest.approx([-0.00339, -0.00044], abs=5e-5)


def test_cps_with_a_fixed_eta_loses_variance_however_small_the_steps() -> None:
    variances = [final_variance(shifted_sigmas(n, 3.0), [STEPS["cps"]] * n) for n in (800, 1600)]
    assert variances == pytest.approx([0.180, 0.180], abs=0.002)


@pytest.mark.parametrize(
    ("kernel", "residue"),
    [("flow_sde", 0.0084), ("dance_sde", 0.0129), ("cps", 0.0), ("gddim", 0.0), ("ode", 0.0)],
)
def test_noise_left_on_a_single_image_is_as_tabulated(kernel: str, residue: float) -> None:
    assert abs(final_variance(shifted_sigmas(25, 3.0), [STEPS[kernel]] * 25, DIRAC) - residue) < 5.1e-5


@pytest.mark.parametrize("shared_noise", [True, False])
@pytest.mark.parametrize(("start", "kernel"), [(0, "flow_sde"), (0, "dance_sde"), (20, "cps"), (20, "gddim")])
def test_samples_of_a_rollout_have_the_variance_of_the_recursion(start: int, kernel: str, shared_noise: bool) -> None:
    window = range(start, start + 4)
    plan = plan_trajectory(num_steps=25, shift=3.0, window=window)
    trajectory = rollout(
        lambda x, sigma, _: DATA.slope(sigma) * x,
        plan,
        Noise(seed=3, iteration=0, latent_shape=(20_000,)),
        kernel=STEPS[kernel],
        prompts=[0],
        group_size=2,
        noise_spread=0.0 if shared_noise else 1.0,
        micro_batch=2,
    )
    kernels = [kernel if step in window else "ode" for step in range(25)]
    eta = 0.3 if kernel == "dance_sde" else 0.7
    expected = DATA.sampled_variance(reference.shifted_schedule(25, 3.0).tolist(), kernels, eta)
    # 20 000 independent dimensions: the relative standard error is at most sqrt(2 / 20 000) = 1 %
    assert trajectory.x0.var().item() == pytest.approx(expected, rel=0.03)
    assert abs(trajectory.x0.mean().item()) < 4 * (expected / 20_000) ** 0.5
