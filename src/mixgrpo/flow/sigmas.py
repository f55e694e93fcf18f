"""Noise schedules: tuples of floats that fall from exactly 1 (pure noise) to exactly 0 (data). No torch."""


def shift_time(u: float, shift: float) -> float:
    """Map evenly spaced time `u` in [0, 1] to sigma = k u / (1 + (k - 1) u), k = `shift` (arXiv 2403.03206, eq. 23)."""
    return shift * u / (1.0 + (shift - 1.0) * u)


def unshift_time(sigma: float, shift: float) -> float:
    """Return the `u` in [0, 1] that `shift_time` maps to `sigma`."""
    return sigma / (shift - (shift - 1.0) * sigma)


def shifted_sigmas(num_steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return the `num_steps + 1` sigmas of a time-shifted schedule.

    `shift` > 1 spends more steps at high noise: 3 for FLUX and SD3 images, 5 for video; 1 is the linear schedule.

    Raises:
        ValueError: if `num_steps` is below 1 or `shift` is not positive.
    """
    _check(num_steps, shift)
    return (1.0, *_evenly_below(1.0, num_steps, shift), 0.0)


def sigmas_from(sigma: float, num_steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return the `num_steps + 1` sigmas of a schedule that starts at `sigma`, evenly spaced before the time shift.

    Raises:
        ValueError: if `sigma` is not in (0, 1], `num_steps` is below 1 or `shift` is not positive.
    """
    _check(num_steps, shift)
    if not 0.0 < sigma <= 1.0:
        raise ValueError(f"sigma must be in (0, 1], got {sigma}")
    return (sigma, *_evenly_below(unshift_time(sigma, shift), num_steps, shift), 0.0)


def _evenly_below(start: float, num_steps: int, shift: float) -> tuple[float, ...]:
    """Return the sigmas of the steps between unshifted time `start` and 0."""
    return tuple(shift_time(start * (1.0 - step / num_steps), shift) for step in range(1, num_steps))


def _check(num_steps: int, shift: float) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be above 0, got {shift}")
