"""How much each trained step counts in the loss. No torch.

A velocity change moves an early step's distribution far less than a late one's, measured in its own standard
deviations, so with equal weights a few steps decide the gradient. Both remedies weigh a step by a function of the
schedule alone; here they are scaled to a mean of 1 over all steps that may be trained, so that turning them on changes
how the steps compare and not how large the loss is.
"""

from collections.abc import Sequence
from itertools import pairwise


def noise_level_weights(stds: Sequence[float]) -> tuple[float, ...]:
    """Return TempFlow-GRPO's weights: in proportion to the standard deviation of each step (arXiv 2508.04324).

    Raises:
        ValueError: if a standard deviation is not positive.
    """
    return _scaled(stds, "standard deviations")


def inverse_step_weights(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return GRPO-Guard's weights: in inverse proportion to the length sigma_i - sigma_(i + 1) (arXiv 2510.22319).

    It evens out the factor dt between a change of the velocity and that of a step's mean. `sigmas` are falling and one
    more than there are steps.

    Raises:
        ValueError: if a step does not go down.
    """
    lengths = [sigma - sigma_next for sigma, sigma_next in pairwise(sigmas)]
    if not all(length > 0.0 for length in lengths):
        raise ValueError(f"sigmas must fall from step to step, got {tuple(sigmas)}")
    return _scaled([1.0 / length for length in lengths], "steps")


def _scaled(values: Sequence[float], what: str) -> tuple[float, ...]:
    if not values or not all(value > 0.0 for value in values):
        raise ValueError(f"there must be {what}, all above 0, got {tuple(values)}")
    mean = sum(values) / len(values)
    return tuple(value / mean for value in values)
