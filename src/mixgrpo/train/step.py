"""The sampling half of an iteration: draw groups and score them (arXiv 2507.21802, algorithm 1).

Shapes: P prompts, G samples per prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import AwmLossConfig, NftLossConfig
from mixgrpo.data.prompts import negatives
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import Kernel, Trajectory, Transition, forward_transitions, rollout
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.flow.steps import cps_kernel, dance_sde_kernel, flow_sde_kernel, gddim_kernel
from mixgrpo.models import Conditioning
from mixgrpo.rewards.scorer import Scorer, ScoreTable
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.policy import Policy
from mixgrpo.train.scores import join_tables

KERNELS: dict[str, Kernel] = {
    "flow_sde": flow_sde_kernel,
    "dance_sde": dance_sde_kernel,
    "cps": cps_kernel,
    "gddim": gddim_kernel,
}


def make_kernel(config: Config) -> Kernel | None:
    """Return the transition of the stochastic steps, with its strength; None if there are none."""
    if config.rollout.kernel == "ode":
        return None
    return partial(KERNELS[config.rollout.kernel], eta=config.rollout.eta)


@dataclass(frozen=True, slots=True)
class Experience:
    """What a rollout leaves for the update."""

    conditioning: Conditioning
    """Of the P prompts."""
    transitions: dict[int, Transition]
    """What will be trained on, by the step's number in the schedule without compressed steps."""
    scores: ScoreTable
    """Of the P * G samples, those of a prompt next to each other."""
    calls: int
    """Samples that went through the model."""


def sample_and_score(
    policy: Policy,
    scorer: Scorer,
    prompts: Sequence[str],
    config: Config,
    *,
    plan: TrajectoryPlan,
    noise: Noise,
    kernel: Kernel | None,
    trained: Sequence[int],
    clock: Clock,
    stop: StopRequest,
    progress: Callable[[int, int], None],
) -> Experience:
    """Draw a group for every prompt; while one chunk of prompts is being scored, draw the next."""
    group_size, micro_batch = config.rollout.group_size, config.rollout.micro_batch
    rewards = [reward.name for reward in config.rewards if not reward.evaluation_only]
    with clock.span("encode"):
        conditioning = policy.model.encode(prompts, negatives(prompts))
    chunk_size = max(1, micro_batch // group_size)
    chunks = [range(start, min(start + chunk_size, len(prompts))) for start in range(0, len(prompts), chunk_size)]
    parts: list[dict[int, Transition]] = []
    pending, calls = [], 0
    with policy.sampling():
        for chunk in chunks:
            stop.check()
            chunk_conditioning = conditioning.take(torch.tensor(chunk, device=policy.model.device))

            def velocity(x: Tensor, sigma: float, row: Tensor, conditioning=chunk_conditioning) -> Tensor:
                with clock.span("model"):
                    return policy.velocity(x, sigma, conditioning.take(row))

            trajectory = rollout(
                velocity,
                plan,
                noise,
                kernel=kernel,
                prompts=chunk,
                group_size=group_size,
                micro_batch=micro_batch,
                noise_spread=config.rollout.noise_spread,
                share_trunk=config.rollout.share_trunk,
                record=_recorded(config, plan, trained),
                tail_variant=config.rollout.tail_variant,
                device=policy.model.device,
            )
            with clock.span("decode"):
                images = torch.cat([policy.model.decode(x) for x in trajectory.x0.flatten(0, 1).split(micro_batch)])
            asked = [prompts[row] for row in chunk for _ in range(group_size)]
            pending.append(scorer.submit(images, asked, rewards=rewards))
            parts.append(_transitions(config, trajectory, plan, noise, prompts=chunk, trained=trained))
            calls += trajectory.calls
            progress(chunk.stop, len(prompts))
    with clock.span("score_wait"):
        scores = join_tables([part.result() for part in pending])
    return Experience(conditioning, {step: _join([part[step] for part in parts]) for step in trained}, scores, calls)


def _trains_on_forward_process(config: Config) -> bool:
    return isinstance(config.loss, NftLossConfig | AwmLossConfig)


def _recorded(config: Config, plan: TrajectoryPlan, trained: Sequence[int]) -> set[int]:
    """Return the steps of the plan whose transitions an update needs; nothing else of a trajectory is kept."""
    return set() if _trains_on_forward_process(config) else {step - plan.offset for step in trained}


def _transitions(
    config: Config,
    trajectory: Trajectory,
    plan: TrajectoryPlan,
    noise: Noise,
    *,
    prompts: range,
    trained: Sequence[int],
) -> dict[int, Transition]:
    """Return what an update will be taken on, by the step's number in the schedule."""
    if not _trains_on_forward_process(config):
        return {step: trajectory.transitions[step - plan.offset] for step in trained}
    return forward_transitions(
        trajectory.x0,
        noise,
        shifted_sigmas(config.rollout.num_steps, config.rollout.shift),
        prompts=prompts,
        steps=trained,
    )


def _join(parts: Sequence[Transition]) -> Transition:
    return Transition(
        x=torch.cat([part.x for part in parts]),
        x_next=torch.cat([part.x_next for part in parts]),
        sigma=parts[0].sigma,
        sigma_next=parts[0].sigma_next,
    )
