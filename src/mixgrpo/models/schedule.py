"""The schedules that diffusers' pipelines sample with, from the config of their `FlowMatchEulerDiscreteScheduler`.

Training has its own schedule, `rollout.shift`. These are needed to draw what a pipeline draws.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def linear_mu(config: Mapping[str, Any], tokens: int) -> float:
    """Return the shift parameter mu of an image of `tokens` tokens: on a line through two points of the config."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    bottom, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return bottom + (top - bottom) * (tokens - low) / (high - low)


def empirical_mu(num_steps: int, *, tokens: int) -> float:
    """Return FLUX.2's shift parameter mu: on lines in the number of tokens, one for 10 steps and one for 200.

    Other numbers of steps lie on the line between both; above 4300 tokens the second counts for all. From diffusers'
    `Flux2Pipeline`, which has it from FLUX.2's own code.
    """
    few = 8.73809524e-05 * tokens + 1.89833333
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    return few + (many - few) * (num_steps - 10) / 190.0


def shifted(config: Mapping[str, Any], times: Sequence[float], *, mu: float | None) -> tuple[float, ...]:
    """Return the sigmas of unshifted `times`, which exclude 0, with the 0 of the end.

    Args:
        config: the scheduler's.
        times: in (0, 1], decreasing.
        mu: shift parameter, used where the config says that the shift depends on the image.
    """
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("a schedule with dynamic shifting needs mu")
        shift = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    else:
        shift = config.get("shift", 1.0)
    sigmas = [shift * time / (1.0 + (shift - 1.0) * time) for time in times]
    terminal = config.get("shift_terminal")
    if terminal and len(sigmas) > 1:  # a single step starts and ends at 1, with nothing to stretch
        stretch = (1.0 - sigmas[-1]) / (1.0 - terminal)
        sigmas = [1.0 - (1.0 - value) / stretch for value in sigmas]
    return (*sigmas, 0.0)


def even_times(num_steps: int, *, last: float | None = None) -> list[float]:
    """Return `num_steps` times from 1 down to `last`, evenly spaced; without it, to 1 / num_steps."""
    end = 1.0 / num_steps if last is None else last
    if num_steps == 1:
        return [1.0]
    return [1.0 + (end - 1.0) * step / (num_steps - 1) for step in range(num_steps)]


def pipeline_sigmas(config: Mapping[str, Any], num_steps: int, *, tokens: int) -> tuple[float, ...]:
    """Return the schedule of the pipelines that take even times down to 1 / num_steps (FLUX.1, Qwen-Image, Z-Image)."""
    return shifted(config, even_times(num_steps), mu=linear_mu(config, tokens))


def scheduler_sigmas(config: Mapping[str, Any], num_steps: int, *, tokens: int) -> tuple[float, ...]:
    """Return the schedule of the pipelines that leave the times to the scheduler (SD3).

    It goes down to the smallest time of training, which is shifted twice: once when the scheduler is made, if the shift
    does not depend on the image, and again with the others.
    """
    first = 1.0 / config.get("num_train_timesteps", 1000)
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift", 1.0)
        first = shift * first / (1.0 + (shift - 1.0) * first)
    return shifted(config, even_times(num_steps, last=first), mu=linear_mu(config, tokens))


def unipc_sigmas(config: Mapping[str, Any], num_steps: int) -> tuple[float, ...]:
    """Return the schedule of a `UniPCMultistepScheduler` with flow sigmas, which Wan is shipped with.

    Its times are evenly spaced down to the smallest time of training, which is left out, and its shift is called
    `flow_shift`. It calls the transformer with whole thousandths of sigma; we call it with sigma as it is.
    """
    times = even_times(num_steps + 1, last=1.0 / config.get("num_train_timesteps", 1000))
    return shifted({"shift": config["flow_shift"]}, times[:-1], mu=None)
