"""Noise schedules: tuples of floats that fall from exactly 1 (pure noise) to exactly 0 (data). No torch."""


def shift_time(u: float, shift: float) -> float:
    """Map evenly spaced time `u` in [0, 1] to sigma = k u / (1 + (k - 1) u), k = `shift` (arXiv 2403.03206, eq. 23)."""
    return shift * u / (1.0 + (shift - 1.0) * u)


def unshift_time(sigma: float, shift: float) -> float:
    """Return the `u` in [0, 1] that `shift_time` maps to `sigma`."""
    return sigma / (shift - (shift - 1.0) * sigma)


def linear_sigmas(num_steps: int) -> tuple[float, ...]:
    """Return `num_steps + 1` evenly spaced sigmas from 1 to 0."""
    return shifted_sigmas(num_steps, 1.0)


def shifted_sigmas(num_steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return the `num_steps + 1` sigmas of a time-shifted schedule.

    `shift` > 1 spends more steps at high noise: 3 for FLUX and SD3 images, 5 for video; 1 is the linear schedule.

    Raises:
        ValueError: if `num_steps` is below 1 or `shift` is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    inner = (shift_time(1.0 - step / num_steps, shift) for step in range(1, num_steps))
    return (1.0, *inner, 0.0)
