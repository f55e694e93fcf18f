"""The only sampling loop of the project.

A group's samples start from one noise, so until the first stochastic step has drawn its own noise they are one and
the same trajectory. The loop keeps them as one: its state is [P, 1, *latent] at first and broadcasts to
[P, G, *latent] when the noise of the window's first step is added. The model call *of* that step is thus shared too.
It is the same mathematics as G separate trajectories, with less work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixgrpo.flow.multistep import DPMSolverPP, Variant
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.steps import Gaussian, ode_step

Velocity = Callable[[Tensor, float, Tensor], Tensor]
"""(x [B, *latent], sigma, row of each sample's prompt [B]) -> v [B, *latent]."""


Kernel = Callable[..., Gaussian]
"""A stochastic step with its strength already chosen: (x, v, *, sigma, sigma_next) -> distribution of x_next."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One stochastic step of P prompts with G samples each: all that an update needs to score it again."""

    x: Tensor
    """[P, G, *latent], or [P, 1, *latent] where the samples of a group are still one."""
    x_next: Tensor
    """[P, G, *latent]"""
    sigma: float
    sigma_next: float


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a rollout returns."""

    x0: Tensor
    """Final latents [P, G, *latent]."""
    transitions: dict[int, Transition]
    """The stochastic steps by their index."""
    calls: int
    """Samples that went through the model, summed over all steps."""


@torch.no_grad()
def rollout(
    velocity: Velocity,
    plan: TrajectoryPlan,
    noise: Noise,
    *,
    kernel: Kernel | None,
    prompts: Sequence[int],
    group_size: int,
    micro_batch: int,
    shared_noise: bool = True,
    share_trunk: bool = True,
    tail_variant: Variant = "midpoint",
    device: torch.device | str = "cpu",
) -> Trajectory:
    """Sample `group_size` images for each of `prompts`: ODE steps, stochastic inside the plan's window.

    This is the sampling half of Algorithm 1 (and of Algorithm 2 with a Flash tail) of arXiv 2507.21802. `prompts` are
    the keys of the noise, so a prompt gets the same noise in any batch; `velocity` is told the row. At most
    `micro_batch` samples go through the model at once. `share_trunk` = False computes every sample by itself.
    """
    if plan.window and kernel is None:
        raise ValueError("a plan with stochastic steps needs a kernel")
    samples = range(group_size)
    if shared_noise:
        x = torch.stack([noise.initial(prompt, None) for prompt in prompts]).unsqueeze(1)
    else:
        x = _stack(noise.initial, prompts, samples)
    x = x.to(device)
    if not share_trunk:
        x = x.expand(len(prompts), group_size, *noise.latent_shape)

    solver = DPMSolverPP(order=plan.tail_order, variant=tail_variant)
    transitions: dict[int, Transition] = {}
    calls = 0
    for step in range(plan.num_steps):
        sigma, sigma_next = plan.sigmas[step], plan.sigmas[step + 1]
        v = _in_micro_batches(velocity, x, sigma, micro_batch)
        calls += x.shape[0] * x.shape[1]
        if kernel is not None and step in plan.window:
            solver.observe(x, v, sigma=sigma)
            mean, std = kernel(x, v, sigma=sigma, sigma_next=sigma_next)
            z = _stack(partial(noise.step, step=step), prompts, samples)
            x_next = mean + std * z.to(device)
            transitions[step] = Transition(x, x_next, sigma, sigma_next)
        elif step >= plan.window.stop and plan.tail_order > 1:
            x_next = solver.step(x, v, sigma=sigma, sigma_next=sigma_next)
        else:
            solver.observe(x, v, sigma=sigma)
            x_next = ode_step(x, v, sigma=sigma, sigma_next=sigma_next)
        x = x_next
    return Trajectory(x.expand(len(prompts), group_size, *noise.latent_shape), transitions, calls)


def _stack(draw: Callable[[int, int], Tensor], prompts: Sequence[int], samples: range) -> Tensor:
    """Return [P, G, *latent]."""
    return torch.stack([torch.stack([draw(prompt, sample) for sample in samples]) for prompt in prompts])


def _in_micro_batches(velocity: Velocity, x: Tensor, sigma: float, micro_batch: int) -> Tensor:
    """Call the model on all samples of x [P, n, *latent], `micro_batch` at a time."""
    num_prompts, samples_each = x.shape[:2]
    rows = torch.arange(num_prompts, device=x.device).repeat_interleave(samples_each)
    parts = [
        velocity(part, sigma, part_rows)
        for part, part_rows in zip(x.flatten(0, 1).split(micro_batch), rows.split(micro_batch), strict=True)
    ]
    return torch.cat(parts).reshape(x.shape)
