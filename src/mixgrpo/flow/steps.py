"""One denoising step: the ODE step, the stochastic kernels, and the log-density of a kernel.

Convention: sigma 1 is noise, sigma 0 is data, x = (1 - sigma) x0 + sigma noise, v = noise - x0, and a step goes from
`sigma` to the smaller `sigma_next`. From x and v follow the predictions x0 = x - sigma v and
noise = x + (1 - sigma) v. Every kernel is a Gaussian over x_next with one standard deviation, so that sampling and
scoring share one formula. Arithmetic is float32 whatever the model runs in.
"""

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Gaussian(NamedTuple):
    """A Gaussian over latents: a mean per dimension and one standard deviation for all of them."""

    mean: Float[Tensor, " batch *latent"]
    std: float


def ode_step(
    x: Float[Tensor, " batch *latent"], v: Float[Tensor, " batch *latent"], *, sigma: float, sigma_next: float
) -> Float[Tensor, " batch *latent"]:
    """Take an Euler step of dx = v dsigma."""
    _check_step(sigma, sigma_next)
    x, v = _at_least_float32(x), _at_least_float32(v)
    return x + v * (sigma_next - sigma)


def flow_sde_kernel(
    x: Float[Tensor, " batch *latent"],
    v: Float[Tensor, " batch *latent"],
    *,
    sigma: float,
    sigma_next: float,
    eta: float,
) -> Gaussian:
    """Euler-Maruyama step of Flow-GRPO's SDE, g = eta sqrt(sigma / (1 - sigma)) (arXiv 2505.05470, eq. 9).

    MixGRPO uses the same step inside its window (arXiv 2507.21802, eq. 7). At sigma = 1, where g is infinite, the
    denominator takes `sigma_next` in place of sigma; the standard deviation is then `eta` exactly.
    """
    _check_step(sigma, sigma_next)
    diffusion = eta**2 * sigma / (1.0 - (sigma if sigma < 1.0 else sigma_next))
    return _euler_maruyama(x, v, sigma=sigma, sigma_next=sigma_next, diffusion=diffusion)


def dance_sde_kernel(
    x: Float[Tensor, " batch *latent"],
    v: Float[Tensor, " batch *latent"],
    *,
    sigma: float,
    sigma_next: float,
    eta: float,
) -> Gaussian:
    """Euler-Maruyama step of DanceGRPO's SDE, g = eta at every noise level (arXiv 2505.07818)."""
    _check_step(sigma, sigma_next)
    return _euler_maruyama(x, v, sigma=sigma, sigma_next=sigma_next, diffusion=eta**2)


def cps_kernel(
    x: Float[Tensor, " batch *latent"],
    v: Float[Tensor, " batch *latent"],
    *,
    sigma: float,
    sigma_next: float,
    eta: float,
) -> Gaussian:
    """Coefficient-preserving step of Flow-CPS (arXiv 2509.05952): a share of the noise is drawn anew.

    `eta` in [0, 1] is an angle: the noise kept has weight cos(eta pi / 2), the new noise sin(eta pi / 2), and their
    squares sum to sigma_next squared. The share does not shrink with the step, so a finer grid does not remove its
    bias.
    """
    _check_step(sigma, sigma_next)
    angle = eta * math.pi / 2.0
    return _redraw(x, v, sigma=sigma, sigma_next=sigma_next, keep=math.cos(angle), new=math.sin(angle))


def gddim_kernel(
    x: Float[Tensor, " batch *latent"],
    v: Float[Tensor, " batch *latent"],
    *,
    sigma: float,
    sigma_next: float,
    eta: float,
) -> Gaussian:
    """Exact kernel of Flow-GRPO's SDE for a fixed prediction (gDDIM, arXiv 2206.05564, theorem 1).

    With stochasticity lambda, eta = sqrt(2) lambda, and e^-h = sigma_next (1 - sigma) / (sigma (1 - sigma_next)), the
    noise kept has weight e^(-lambda^2 h). No singularity at sigma 1 (all noise is drawn anew) or at sigma_next 0.
    """
    _check_step(sigma, sigma_next)
    decay = sigma_next * (1.0 - sigma) / (sigma * (1.0 - sigma_next))
    keep = decay ** (eta**2 / 2.0)
    return _redraw(x, v, sigma=sigma, sigma_next=sigma_next, keep=keep, new=math.sqrt(1.0 - keep**2))


def log_prob(kernel: Gaussian, x_next: Float[Tensor, " batch *latent"]) -> Float[Tensor, " batch"]:
    """Return the Gaussian log-density of `x_next`, as the **mean** over latent dimensions.

    All published codes average instead of summing, which is why clip ranges are as small as 1e-4. The gradient of the
    mean (not of `x_next`, which is data) reaches the model through `kernel.mean`.

    Raises:
        ValueError: if the kernel has no spread, as a step that lands on sigma 0 has with CPS and gDDIM.
    """
    if not kernel.std > 0.0:
        raise ValueError(f"a kernel with standard deviation {kernel.std} has no density: do not train this step")
    deviation = (_at_least_float32(x_next) - kernel.mean) / kernel.std
    per_dim = -0.5 * deviation.square() - math.log(kernel.std) - 0.5 * math.log(2.0 * math.pi)
    return per_dim.flatten(1).mean(1)


def _euler_maruyama(x: Tensor, v: Tensor, *, sigma: float, sigma_next: float, diffusion: float) -> Gaussian:
    """Step dx = [v + g^2 / (2 sigma) (x + (1 - sigma) v)] dt + g dw, with g^2 = `diffusion` and dt < 0."""
    x, v = _at_least_float32(x), _at_least_float32(v)
    dt = sigma_next - sigma
    drift = v + diffusion / (2.0 * sigma) * (x + (1.0 - sigma) * v)
    return Gaussian(mean=x + drift * dt, std=math.sqrt(-diffusion * dt))


def _redraw(x: Tensor, v: Tensor, *, sigma: float, sigma_next: float, keep: float, new: float) -> Gaussian:
    """Land on (1 - sigma_next) x0 + sigma_next (keep noise + new z), both predictions taken from x and v."""
    x, v = _at_least_float32(x), _at_least_float32(v)
    mean = (1.0 - sigma_next) * (x - sigma * v) + sigma_next * keep * (x + (1.0 - sigma) * v)
    return Gaussian(mean=mean, std=sigma_next * new)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()


def _check_step(sigma: float, sigma_next: float) -> None:
    if not 0.0 <= sigma_next < sigma <= 1.0:
        raise ValueError(f"a step goes down within [0, 1], got sigma {sigma} to sigma_next {sigma_next}")
