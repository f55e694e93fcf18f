"""DPM-Solver++: order of convergence, exactness at both ends, history, and diffusers' own scheduler."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from mixgrpo.flow.multistep import DPMSolverPP
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.flow.steps import ode_step
from parity import reference
from parity.reference import Array, Variant
from parity.schedulers import diffusers_solver

GAUSSIAN = reference.GaussianData(mean=0.7, variance=0.25)
MIXTURE = reference.TwoGaussians(weights=(0.35, 0.65), means=(-1.0, 1.2), stds=(0.5, 0.4))
STARTS = np.array([[-1.4], [-0.3], [0.2], [1.1]])
SOLVERS: list[tuple[int, Variant]] = [
    (1, "midpoint"),
    (2, "midpoint"),
    (2, "heun"),
    (3, "midpoint"),
    (3, "heun"),
    (3, "corrected"),
]
Velocity = Callable[[Array, float], Array]

every_solver = pytest.mark.parametrize(("order", "variant"), SOLVERS)


def linear_grid(u: Array) -> Array:
    return 0.95 - 0.85 * u


def shifted_grid(u: Array) -> Array:
    time = 0.8 - 0.7 * u
    return 3.0 * time / (1.0 + 2.0 * time)


def uneven_grid(u: Array) -> Array:
    return 0.95 - 0.85 * (u + 0.1 * np.sin(2 * math.pi * u))


def mixture_solution(sigmas: Sequence[float]) -> list[Array]:
    solution = solve_ivp(
        lambda sigma, x: MIXTURE.velocity(x, sigma),
        (sigmas[0], sigmas[-1]),
        STARTS[:, 0],
        method="DOP853",
        t_eval=sigmas,
        rtol=1e-12,
        atol=1e-12,
    )
    return [x[:, None] for x in solution.y.T]


def gaussian_solution(sigmas: Sequence[float]) -> list[Array]:
    return [GAUSSIAN.flow(STARTS, sigmas[0], sigma) for sigma in sigmas]


PROBLEMS: dict[str, tuple[Velocity, Callable[[Sequence[float]], list[Array]]]] = {
    "gaussian": (GAUSSIAN.velocity, gaussian_solution),
    "mixture": (MIXTURE.velocity, mixture_solution),
}


def solve(solver: DPMSolverPP, velocity: Velocity, x: Array, sigmas: Sequence[float]) -> Array:
    for sigma, sigma_next in pairwise(sigmas):
        v = torch.from_numpy(velocity(x, sigma))
        x = solver.step(torch.from_numpy(x), v, sigma=sigma, sigma_next=sigma_next).numpy()
    return x


def error_with_exact_history(
    problem: str, grid: Callable[[Array], Array], order: int, variant: Variant, n: int
) -> float:
    """Let the solver observe the true solution at the first two points, so that it never lacks history."""
    velocity, solution = PROBLEMS[problem]
    sigmas = grid(np.linspace(0.0, 1.0, n + 1)).tolist()
    first = sigmas[:3]
    truth = solution([*first, sigmas[-1]])
    solver = DPMSolverPP(order=order, variant=variant)
    for sigma, x in zip(first[:2], truth[:2], strict=True):
        solver.observe(torch.from_numpy(x), torch.from_numpy(velocity(x, sigma)), sigma=sigma)
    return float(np.abs(solve(solver, velocity, truth[2], sigmas[2:]) - truth[-1]).max())


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("grid", [linear_grid, shifted_grid, uneven_grid])
@pytest.mark.parametrize(
    ("order", "variant", "slope"),
    [(1, "midpoint", 1), (2, "midpoint", 2), (2, "heun", 2), (3, "corrected", 3)],
)
def test_solver_converges_with_its_order(
    problem: str, grid: Callable[[Array], Array], order: int, variant: Variant, slope: float
) -> None:
    errors = [error_with_exact_history(problem, grid, order, variant, n) for n in (120, 240)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(slope, abs=0.2)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_published_third_order_formula_converges_with_second_order_only(problem: str) -> None:
    errors = [error_with_exact_history(problem, linear_grid, 3, "midpoint", n) for n in (480, 960)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("order", "variant", "slope"), [(1, "midpoint", 1.0), (2, "midpoint", 1.8), (2, "heun", 1.8)])
def test_solver_keeps_its_order_from_exactly_noise_to_exactly_data(order: int, variant: Variant, slope: float) -> None:
    """Next to sigma 1, steps in lambda never get small; it costs the second order a logarithm: log n / n^2."""
    truth = GAUSSIAN.flow(STARTS, 1.0, 0.0)
    errors = []
    for n in (240, 480):
        solver = DPMSolverPP(order=order, variant=variant)
        errors.append(np.abs(solve(solver, GAUSSIAN.velocity, STARTS, shifted_sigmas(n)) - truth).max())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(slope, abs=0.1)


@every_solver
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
def test_solver_finds_a_single_image_exactly_from_sigma_one_to_zero(
    order: int, variant: Variant, shift: float, num_steps: int
) -> None:
    image = np.array([[0.3], [-2.0], [5.0], [0.0]])
    solver = DPMSolverPP(order=order, variant=variant)
    x = solve(solver, lambda x, sigma: (x - image) / sigma, STARTS, shifted_sigmas(num_steps, shift))
    np.testing.assert_allclose(x, image, rtol=0, atol=1e-12)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solver_stays_finite_and_computes_in_float32_over_a_whole_schedule(
    order: int, variant: Variant, dtype: torch.dtype
) -> None:
    solver = DPMSolverPP(order=order, variant=variant)
    x = torch.randn(3, 4, dtype=dtype)
    for sigma, sigma_next in pairwise(shifted_sigmas(12, 3.0)):
        x = solver.step(x.to(dtype), torch.tanh(x).to(dtype), sigma=sigma, sigma_next=sigma_next)
        assert x.dtype == torch.float32
        assert x.isfinite().all()


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.9), (0.9, 0.3), (0.2, 0.1), (0.1, 0.0), (1.0, 0.0)])
def test_solver_of_order_one_is_the_euler_step(sigma: float, sigma_next: float) -> None:
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)
    solver = DPMSolverPP(order=1)
    solver.observe(torch.randn_like(x), v, sigma=1.0)
    stepped = solver.step(x, v, sigma=sigma, sigma_next=sigma_next)
    np.testing.assert_allclose(stepped, ode_step(x, v, sigma=sigma, sigma_next=sigma_next), rtol=0, atol=1e-14)


@every_solver
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_step_equals_the_integral_of_the_fitted_polynomial(order: int, variant: Variant, shift: float) -> None:
    solver = DPMSolverPP(order=order, variant=variant)
    predictions: list[tuple[float, Array]] = []
    x = torch.randn(2, 3, dtype=torch.float64)
    for sigma, sigma_next in pairwise(shifted_sigmas(9, shift)):
        v = torch.sin(3 * x) + sigma
        predictions.append((sigma, (x - sigma * v).numpy()))
        expected = reference.multistep(x.numpy(), predictions, sigma, sigma_next, order=order, variant=variant)
        x = solver.step(x, v, sigma=sigma, sigma_next=sigma_next)
        np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-10)


@every_solver
def test_observed_predictions_count_like_those_of_own_steps(order: int, variant: Variant) -> None:
    sigmas = shifted_sigmas(8, 3.0)
    xs = torch.randn(8, 2, 3, dtype=torch.float64)
    vs = torch.randn(8, 2, 3, dtype=torch.float64)
    stepping, watching = DPMSolverPP(order=order, variant=variant), DPMSolverPP(order=order, variant=variant)
    for i in range(6):
        stepping.step(xs[i], vs[i], sigma=sigmas[i], sigma_next=sigmas[i + 1])
        watching.observe(xs[i], vs[i], sigma=sigmas[i])
    for i in (6, 7):
        own = stepping.step(xs[i], vs[i], sigma=sigmas[i], sigma_next=sigmas[i + 1])
        seen = watching.step(xs[i], vs[i], sigma=sigmas[i], sigma_next=sigmas[i + 1])
        assert torch.equal(own, seen)


@pytest.mark.parametrize(("order", "variant"), SOLVERS[:-1])
@pytest.mark.parametrize("sigmas", [shifted_sigmas(12, 3.0), shifted_sigmas(20, 1.0), (0.9, 0.85, 0.5, 0.45, 0.1, 0.0)])
def test_every_step_equals_diffusers(order: int, variant: Variant, sigmas: tuple[float, ...]) -> None:
    theirs = diffusers_solver(sigmas, algorithm_type="dpmsolver++", solver_order=order, solver_type=variant)
    ours = DPMSolverPP(order=order, variant=variant)
    x = torch.randn(2, 3)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = torch.sin(3 * x) + sigma * x
        expected = theirs.step(v, step, x, return_dict=False)[0]
        x = ours.step(x, v, sigma=sigma, sigma_next=sigma_next)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5)


def test_corrected_variant_is_for_order_three_only() -> None:
    with pytest.raises(ValueError, match="corrected"):
        DPMSolverPP(order=2, variant="corrected")


@pytest.mark.parametrize("order", [0, 4])
def test_solver_refuses_unknown_orders(order: int) -> None:
    with pytest.raises(ValueError, match="order"):
        DPMSolverPP(order=order)
