"""DPM-Solver++ in its multistep, data-prediction form (arXiv 2211.01095, algorithm 2) for flow matching.

With alpha = 1 - sigma and lambda = log((1 - sigma) / sigma), a step of size h = lambda_next - lambda is

    x_next = (sigma_next / sigma) x + (1 - sigma_next) (1 - e^-h) D

where D is the latest prediction of x0 and, from the second step on, its slope and curvature in lambda. Written with
e^-h = sigma_next (1 - sigma) / (sigma (1 - sigma_next)) nothing diverges at sigma 1.
"""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mixgrpo.flow.steps import _at_least_float32, _check_step

Variant = Literal["midpoint", "heun", "corrected"]


class DPMSolverPP:
    """A multistep solver of `order` 1, 2 or 3 that works on any grid of falling sigmas.

    It starts at order 1 and gains one with every prediction it has seen, up to `order`. A step that starts at sigma 1
    or lands on sigma 0 is exact for a constant prediction; the latter returns the predicted x0, because a slope in
    lambda means nothing at lambda = infinity.

    `variant` "midpoint" and "heun" are the two second-order formulas of the paper. At order 3 both give the formula
    that diffusers and the published codes use; it takes half of the curvature term of the exact expansion, so its
    measured order is 2. "corrected", for order 3 only, takes all of it and measures 3.
    """

    def __init__(self, order: int = 2, variant: Variant = "midpoint") -> None:
        """Start without history.

        Raises:
            ValueError: if there is no such order or variant.
        """
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        if variant not in ("midpoint", "heun", "corrected"):
            raise ValueError(f"variant must be 'midpoint', 'heun' or 'corrected', got {variant!r}")
        if variant == "corrected" and order != 3:
            raise ValueError(f"variant 'corrected' is a third-order formula, got order {order}")
        self.order = order
        self.variant = variant
        self._history: list[tuple[float, Tensor]] = []  # (lambda, x0), latest first

    def observe(self, x: Float[Tensor, " batch *latent"], v: Float[Tensor, " batch *latent"], *, sigma: float) -> None:
        """Remember the prediction at `sigma` of a step that something else takes."""
        x0 = _at_least_float32(x) - sigma * _at_least_float32(v)
        self._history = [(_log_snr(sigma), x0), *self._history][: self.order]

    def step(
        self,
        x: Float[Tensor, " batch *latent"],
        v: Float[Tensor, " batch *latent"],
        *,
        sigma: float,
        sigma_next: float,
    ) -> Float[Tensor, " batch *latent"]:
        """Step from `sigma` to `sigma_next` and remember the prediction."""
        _check_step(sigma, sigma_next)
        self.observe(x, v, sigma=sigma)
        x0 = self._history[0][1]
        if sigma_next == 0.0:
            return x0
        decay = sigma_next * (1.0 - sigma) / (sigma * (1.0 - sigma_next))  # e^-h
        step_size = -math.log(decay) if decay > 0.0 else math.inf
        change = (1.0 - decay) * x0 + self._corrections(decay, step_size)
        return (sigma_next / sigma) * _at_least_float32(x) + (1.0 - sigma_next) * change

    def _corrections(self, decay: float, h: float) -> Tensor | float:
        """Return the terms of order h^2 and h^3, by Newton's divided differences in lambda / h."""
        if len(self._history) == 1 or math.isinf(h):
            return 0.0
        (lambda_0, x0), (lambda_1, x1) = self._history[:2]
        r0 = (lambda_0 - lambda_1) / h
        slope = (x0 - x1) / r0
        heun = 1.0 - (1.0 - decay) / h
        if len(self._history) == 2:
            return (0.5 * (1.0 - decay) if self.variant == "midpoint" else heun) * slope
        lambda_2, x2 = self._history[2]
        r1 = (lambda_1 - lambda_2) / h
        older_slope = (x1 - x2) / r1
        curvature = (slope - older_slope) / (r0 + r1)
        slope = slope + r0 * curvature
        second_derivative = 2.0 * curvature if self.variant == "corrected" else curvature
        return heun * slope - ((decay - 1.0 + h) / h**2 - 0.5) * second_derivative


def _log_snr(sigma: float) -> float:
    if sigma == 1.0:
        return -math.inf
    return math.inf if sigma == 0.0 else math.log((1.0 - sigma) / sigma)
