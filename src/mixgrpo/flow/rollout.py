"""The only sampling loop of the project.

A group's samples start from one noise, so until the first stochastic step has drawn its own noise they are one and
the same trajectory. The loop keeps them as one: its state is [P, 1, *latent] at first and broadcasts to
[P, G, *latent] when the noise of the window's first step is added. The model call *of* that step is thus shared too.
It is the same mathematics as G separate trajectories, with less work.
"""

from collections.abc import Callable, Collection, Sequence
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
    """One step of P prompts with G samples each: all that an update needs to score it again.

    A transition of a rollout is a step that was taken. `forward_transitions` makes another kind: x is a finished
    sample with noise added, x_next that sample, and sigma_next 0.
    """

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
    """The steps that were asked for, by their index in the plan."""
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
    noise_spread: float = 0.0,
    share_trunk: bool = True,
    record: Collection[int] | None = None,
    tail_variant: Variant = "midpoint",
    device: torch.device | str = "cpu",
) -> Trajectory:
    """Sample `group_size` images for each of `prompts`: ODE steps, stochastic inside the plan's window.

    This is the sampling half of Algorithm 1 (and of Algorithm 2 with a Flash tail) of arXiv 2507.21802. `prompts` are
    the keys of the noise, so a prompt gets the same noise in any batch; `velocity` is told the row. At most
    `micro_batch` samples go through the model at once. `noise_spread` is how far apart a group starts
    (`Noise.start`); at 0 its samples share the trunk, unless `share_trunk` = False computes every sample by itself.
    `record` names the steps whose transitions are kept: by default those of the window.
    """
    if plan.window and kernel is None:
        raise ValueError("a plan with stochastic steps needs a kernel")
    samples = range(group_size)
    kept = plan.window if record is None else record
    x = _stack(partial(noise.start, spread=noise_spread), prompts, samples[:1] if noise_spread == 0.0 else samples)
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
        elif (plan.head_order if step < plan.window.start else plan.tail_order) > 1:
            x_next = solver.step(x, v, sigma=sigma, sigma_next=sigma_next)
        else:
            solver.observe(x, v, sigma=sigma)
            x_next = ode_step(x, v, sigma=sigma, sigma_next=sigma_next)
        if step in kept:
            transitions[step] = Transition(x, x_next, sigma, sigma_next)
        x = x_next
    return Trajectory(x.expand(len(prompts), group_size, *noise.latent_shape), transitions, calls)


def forward_transitions(
    x0: Tensor, noise: Noise, sigmas: Sequence[float], *, prompts: Sequence[int], steps: Sequence[int]
) -> dict[int, Transition]:
    """Add noise to finished samples x0 [P, G, *latent] at the `sigmas` of `steps`: (1 - sigma) x0 + sigma noise.

    Methods that train on the forward process (DiffusionNFT, AWM) need nothing else of a rollout. The transition goes
    straight to x0, so (x - x_next) / sigma = noise - x0 is the velocity that the sample itself asks for.
    """
    found = {}
    for step in steps:
        eps = _stack(partial(noise.forward, step=step), prompts, range(x0.shape[1]))
        sigma = sigmas[step]
        found[step] = Transition((1.0 - sigma) * x0 + sigma * eps.to(x0.device), x0, sigma, 0.0)
    return found


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
