"""Editing in float64: the way up in closed form, what comes back exactly, what SDE forgets and ODE keeps."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.commands.edit import METHODS
from mixgrpo.flow.edit import Method, edit, noised_states, solve_up
from mixgrpo.flow.sigmas import sigmas_from
from parity import reference

SIGMAS = sigmas_from(0.8, 9, 3.0)
STEPS = range(len(SIGMAS) - 1)
DATA = reference.GaussianData(mean=0.0, variance=0.25)
SHAPE = (3, 5, 4)

every_method = pytest.mark.parametrize("method", get_args(Method))
every_type = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def up(step: int) -> Tensor:
    return normal(100 + step)


def down(step: int) -> Tensor:
    return normal(200 + step)


def silent(step: int) -> Tensor:
    del step
    return torch.zeros(1, 1, dtype=torch.float64)


def source(x: Tensor, sigma: float) -> Tensor:
    """Nothing that a model would say: no velocity of any data, and steep."""
    return 3.0 * torch.sin(7.0 * x + sigma) - x.roll(1, -1) * sigma


def target(x: Tensor, sigma: float) -> Tensor:
    return torch.cos(2.0 * x - sigma) + x.roll(2, -1)


def exact(x: Tensor, sigma: float) -> Tensor:
    return DATA.slope(sigma) * x


def weight_of_x0(method: Method, sigmas: tuple[float, ...]) -> float:
    """How much of x0 is in the result, when all is linear: the result of x0 = 1 without any noise."""
    one = torch.ones(1, 1, dtype=torch.float64)
    options = {"source": exact, "target": exact, "noise_up": silent, "noise_down": silent}
    return edit(one, sigmas, method=method, **options).item()


def test_the_command_offers_the_methods_there_are() -> None:
    assert get_args(Method) == METHODS


def test_noised_states_have_the_marginals_of_the_closed_form() -> None:
    """Of the data 1 - s, of noise s^2, and between two sigmas the covariance of a Markov chain."""
    one = torch.ones(1, 1, dtype=torch.float64)
    data = noised_states(one, SIGMAS, silent)
    assert [state.item() for state in data] == pytest.approx([1.0 - sigma for sigma in SIGMAS], rel=1e-14)

    each_its_own = torch.eye(len(STEPS), dtype=torch.float64)  # every step's noise in a dimension of its own
    noise = torch.cat(noised_states(0.0 * each_its_own[:1], SIGMAS, lambda step: each_its_own[step : step + 1]))
    expected = [
        [(1.0 - max(a, b)) / (1.0 - min(a, b)) * min(a, b) ** 2 for b in SIGMAS]  #
        for a in SIGMAS
    ]
    np.testing.assert_allclose(noise @ noise.T, expected, rtol=0, atol=1e-15)


@every_type
@pytest.mark.parametrize("eta", [0.0, 0.7, math.sqrt(2.0)])
def test_an_unedited_latent_comes_back_bit_for_bit_under_cycle_sde(dtype: torch.dtype, eta: float) -> None:
    """Whatever the velocity; bfloat16 is what a model on a GPU answers in."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return source(x, sigma).to(dtype)

    x0 = normal(1).to(torch.float64 if dtype == torch.float64 else torch.float32)
    result = edit(
        x0,
        SIGMAS,
        method="cycle-sde",
        source=velocity,
        target=velocity,
        noise_up=lambda step: up(step).to(x0.dtype),
        noise_down=down,
        eta=eta,
    )
    assert torch.equal(result, x0)


@every_method
def test_a_mask_leaves_everything_outside_it_as_it_was(method: Method) -> None:
    x0, mask = normal(2), normal(3) > 0.0
    result = edit(x0, SIGMAS, method=method, source=source, target=target, noise_up=up, noise_down=down, mask=mask)
    assert torch.equal(result[~mask], x0[~mask])
    assert (result[mask] != x0[mask]).all()
    whole = edit(x0, SIGMAS, method=method, source=source, target=target, noise_up=up, noise_down=down)
    everywhere = edit(
        x0,
        SIGMAS,
        method=method,
        source=source,
        target=target,
        noise_up=up,
        noise_down=down,
        mask=torch.ones_like(mask),
    )
    assert torch.equal(everywhere, whole)


@pytest.mark.parametrize("eta", [0.5, math.sqrt(2.0)])
def test_cycle_sde_replays_the_noise_solved_from_the_stored_pairs(eta: float) -> None:
    """As the paper writes it, with the noise itself; the last step has none, so what the mean missed is added."""
    x0 = normal(4)
    states = [state.numpy() for state in noised_states(x0, SIGMAS, up)]
    x = states[0]
    for step, (sigma, sigma_next) in enumerate(pairwise(SIGMAS)):
        keep, std = reference.gddim(sigma, sigma_next, eta)
        v, v_source = target(torch.from_numpy(x), sigma), source(torch.from_numpy(states[step]), sigma)
        mean = reference.step_mean(x, v.numpy(), sigma, sigma_next, keep)
        mean_source = reference.step_mean(states[step], v_source.numpy(), sigma, sigma_next, keep)
        missed = states[step + 1] - mean_source
        x = mean + (std * (missed / std) if std > 0.0 else missed)
    result = edit(x0, SIGMAS, method="cycle-sde", source=source, target=target, noise_up=up, noise_down=down, eta=eta)
    np.testing.assert_allclose(result, x, rtol=0, atol=1e-10)
    assert np.abs(x - x0.numpy()).min() > 1e-6


def test_sde_takes_fresh_noise_from_the_exact_kernel() -> None:
    x0, eta = normal(5), 0.9
    x = noised_states(x0, SIGMAS, up)[0].numpy()
    for step, (sigma, sigma_next) in enumerate(pairwise(SIGMAS)):
        keep, std = reference.gddim(sigma, sigma_next, eta)
        v = target(torch.from_numpy(x), sigma).numpy()
        # the last step has no noise: what would be left of it is sigma_next = 0 times a number
        x = reference.step_mean(x, v, sigma, sigma_next, keep) + std * down(step).numpy()
    result = edit(x0, SIGMAS, method="sde", source=source, target=target, noise_up=up, noise_down=down, eta=eta)
    np.testing.assert_allclose(result, x, rtol=0, atol=1e-11)


def test_ode_goes_up_under_the_source_and_down_under_the_target() -> None:
    x0 = normal(6)
    x = x0.numpy()
    for sigma, below in reversed(list(pairwise(SIGMAS))):
        x = x + (sigma - below) * source(torch.from_numpy(x), below).numpy()
    np.testing.assert_allclose(solve_up(x0, SIGMAS, source)[0], x, rtol=0, atol=1e-11)
    for sigma, sigma_next in pairwise(SIGMAS):
        x = x + (sigma_next - sigma) * target(torch.from_numpy(x), sigma).numpy()
    result = edit(x0, SIGMAS, method="ode", source=source, target=target, noise_up=up, noise_down=down)
    np.testing.assert_allclose(result, x, rtol=0, atol=1e-10)


def test_ode_keeps_the_latent_the_better_the_more_steps() -> None:
    """With the exact velocity of known data the round trip's error halves when the steps are doubled."""
    errors = [abs(weight_of_x0("ode", sigmas_from(0.9, steps, 3.0)) - 1.0) for steps in (50, 100, 200, 400)]
    assert errors[-1] < 0.015
    for error, half in pairwise(errors):
        assert error / half == pytest.approx(2.0, rel=0.1)


def test_sde_forgets_the_latent_the_more_the_higher_the_strength() -> None:
    """Its result is of the data's distribution still; only how it depends on the input is lost."""
    weights = [weight_of_x0("sde", sigmas_from(strength, 400, 3.0)) for strength in (0.1, 0.3, 0.5, 0.7, 0.9)]
    # noised, regressed on: the covariance with x0 over its variance is a^2 var / (a^2 var + s^2), a = 1 - s
    closed = [(1 - s) ** 2 * 0.25 / ((1 - s) ** 2 * 0.25 + s**2) for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert weights == pytest.approx(closed, abs=0.01)
    assert weights == sorted(weights, reverse=True)


def test_sde_of_known_data_leaves_its_distribution_alone() -> None:
    x0 = 0.5 * normal(7, (1, 40_000))
    sigmas = sigmas_from(0.8, 300, 3.0)  # the kernel is of first order: 60 steps lose 6 % of the spread
    result = edit(
        x0,
        sigmas,
        method="sde",
        source=exact,
        target=exact,
        noise_up=lambda step: normal(1000 + step, (1, 40_000)),
        noise_down=lambda step: normal(2000 + step, (1, 40_000)),
    )
    assert result.std().item() == pytest.approx(0.5, rel=0.03)
    assert abs(torch.corrcoef(torch.cat([x0, result]))[0, 1].item()) < 0.1
    assert weight_of_x0("ode", sigmas) > 0.9


@pytest.mark.parametrize("sigmas", [(1.0, 0.5, 0.0), (0.5, 0.2), (0.5, 0.5, 0.0), (0.2, 0.5, 0.0), (0.0,), (0.5,)])
def test_a_grid_that_does_not_fall_from_below_one_to_zero_is_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="falls from below 1 to exactly 0"):
        edit(normal(8), sigmas, method="sde", source=source, target=target, noise_up=up, noise_down=down)
