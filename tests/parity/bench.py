"""Updates on the toy network, by the package and by hand: what the tests of every objective share."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import plan_trajectory
from mixgrpo.flow.rollout import Kernel, Trajectory, Transition, forward_transitions, rollout
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.flow.steps import flow_sde_kernel
from mixgrpo.models import Conditioning
from mixgrpo.rewards.scorer import ScoreTable
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.objective import Objective, make_objective
from mixgrpo.train.pieces import Piece
from mixgrpo.train.step import Experience
from mixgrpo.train.update import Updater, UpdateReport
from parity.toy import LATENT, Network, ToyPolicy

NUM_PROMPTS, GROUP, NUM_STEPS, SHIFT, ETA = 3, 4, 6, 3.0, 0.6
LEARNING_RATE, MAX_GRAD_NORM = 0.5, 0.06
KERNEL: Kernel = partial(flow_sde_kernel, eta=ETA)
NOISE = Noise(seed=4, iteration=0, latent_shape=LATENT)


def bias() -> Tensor:
    return torch.randn(NUM_PROMPTS, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def advantages() -> Tensor:
    """The last prompt's best and worst are both in the first half-share; one sample could not be scored."""
    return torch.tensor([[1.3, -0.4, 0.2, -1.1], [-1.2, 0.0, 1.6, -0.4], [-1.5, 0.5, 1.4, -0.2]])


def kept_by_hand(rows: list[list[float]], *, extremes: int = 0, threshold: float = 0.0) -> set[tuple[int, int]]:
    kept = set()
    for p, row in enumerate(rows):
        ranked = sorted(range(len(row)), key=lambda g: row[g])
        chosen = set(ranked[:extremes] + ranked[len(row) - extremes :]) if extremes else set(ranked)
        kept |= {(p, g) for g in chosen if abs(row[g]) >= threshold}
    return kept


def shares_by_hand(count: int, split: str) -> list[list[tuple[int, int]]]:
    everyone = [(p, g) for p in range(NUM_PROMPTS) for g in range(GROUP)]
    return [[key for key in everyone if key[split == "samples"] % count == first] for first in range(count)]


def config(loss: dict[str, Any], *, kernel: str = "flow_sde", spread: float = 0.0, **keep: Any) -> Config:
    return Config.model_validate(
        {
            "name": "toy",
            "iterations": 2,
            "prompts_per_iteration": NUM_PROMPTS,
            "model": {"path": "toy", "height": 8, "width": 8},
            "prompts": {"train": "toy", "heldout": "toy"},
            "rollout": {
                "num_steps": NUM_STEPS,
                "shift": SHIFT,
                "group_size": GROUP,
                "micro_batch": 8,
                "kernel": kernel,
                "eta": ETA,
                "noise_spread": spread,
            },
            "window": {"type": "frozen", "size": 3, "start": 1},
            "rewards": [{"name": "brightness"}],
            "advantages": keep,
            "loss": {"type": "grpo", "micro_batch": 3, **loss},
            "optim": {"lr": LEARNING_RATE, "max_grad_norm": MAX_GRAD_NORM},
            "eval": {"num_steps": NUM_STEPS},
        }
    )


def draw(*, share_trunk: bool = True, spread: float = 0.0, stochastic: bool = True) -> Trajectory:
    plan = plan_trajectory(
        num_steps=NUM_STEPS, shift=SHIFT, window=range(1, 4) if stochastic else range(0), tail_order=2
    )
    network = Network()
    return rollout(
        lambda x, sigma, rows: network(x, sigma, bias()[rows]),
        plan,
        NOISE,
        kernel=KERNEL if stochastic else None,
        prompts=range(NUM_PROMPTS),
        group_size=GROUP,
        noise_spread=spread,
        share_trunk=share_trunk,
        record=(1, 2, 3),
        micro_batch=5,
    )


def on_forward_process() -> dict[int, Transition]:
    x0 = draw(spread=1.0, stochastic=False).x0
    sigmas = shifted_sigmas(NUM_STEPS, SHIFT)
    return forward_transitions(x0, NOISE, sigmas, prompts=range(NUM_PROMPTS), steps=(0, 2, 4))


@dataclass
class Spy:
    """An objective that remembers its pieces."""

    objective: Objective
    seen: list[list[Piece]] = field(default_factory=list)

    def pieces(self, *arguments: Any, **settings: Any) -> list[Piece]:
        self.seen.append(self.objective.pieces(*arguments, **settings))
        return self.seen[-1]

    def loss(self, piece: Piece, v: Tensor, old_v: Tensor) -> Any:
        return self.objective.loss(piece, v, old_v)

    def divergence(self, piece: Piece, v: Tensor, other_v: Tensor) -> Tensor:
        return self.objective.divergence(piece, v, other_v)


def update(
    settings: Config, transitions: dict[int, Transition], weights: Tensor, *, lags: bool = False, first_update: int = 0
) -> tuple[ToyPolicy, UpdateReport, Spy]:
    policy = ToyPolicy(lags=lags)
    optimizer = torch.optim.SGD(policy.trained.values(), lr=LEARNING_RATE)
    spy = Spy(make_objective(settings, None if settings.rollout.kernel == "ode" else KERNEL))
    seen = Experience(Conditioning({"bias": bias()}), transitions, ScoreTable({}, {}, {}), 0)
    updater = Updater(cast("Any", policy), optimizer, settings, spy, Clock())
    report = updater.update(
        seen, weights, first_update=first_update, stop=StopRequest(), progress=lambda done, total: None
    )
    assert policy.calls == {
        "update": report.calls.update,
        "old": report.calls.old,
        "reference": report.calls.reference,
    }
    return policy, report, spy


@dataclass(frozen=True)
class Sample:
    """What single samples' formulas need."""

    step: int
    sigma: float
    sigma_next: float
    x: Tensor
    x_next: Tensor
    bias: Tensor

    def velocity(self, network: Network) -> Tensor:
        return network(self.x[None], self.sigma, self.bias[None])[0]


def sample_of(transitions: dict[int, Transition], prompt: int, member: int, step: int) -> Sample:
    t = transitions[step]
    x = t.x.expand(NUM_PROMPTS, GROUP, *LATENT)[prompt, member].double()
    return Sample(step, t.sigma, t.sigma_next, x, t.x_next[prompt, member].double(), bias()[prompt])


Term = Callable[[Sample, Network, Network, float], Tensor]
"""(sample, policy, sampling policy, advantage) -> what it adds to the mean."""
Divergence = Callable[[Sample, Network, Network], Tensor]


def clipped(log_ratio: Tensor, advantage: float, clip_range: float) -> Tensor:
    ratio = torch.exp(log_ratio)
    bounded = min(max(ratio.item(), 1.0 - clip_range), 1.0 + clip_range) * advantage
    return -ratio * advantage if ratio.item() * advantage <= bounded else torch.tensor(-bounded, dtype=torch.float64)


def frozen_copy(policy: ToyPolicy) -> Network:
    network = Network()
    network.load_state_dict(policy.lagging or policy.trained)
    return network.requires_grad_(False)


def repeat_updates(
    policy: ToyPolicy, losses: list[Callable[[Network, Network], Tensor | None]]
) -> Iterator[tuple[Network, Network]]:
    """Step the policy's network by every loss in turn, by gradients scaled down to the largest norm."""
    network, old = policy.network, frozen_copy(policy)
    for loss in losses:
        value = loss(network, old)
        if value is None:
            continue
        gradients = torch.autograd.grad(value, list(network.parameters()))
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.sub_(LEARNING_RATE * min(1.0, MAX_GRAD_NORM / (norm + 1e-6)) * gradient)
        yield network, old


def by_hand(
    transitions: dict[int, Transition],
    shares: list[list[tuple[int, int]]],
    kept: set[tuple[int, int]],
    *,
    term: Term,
    divergence: Divergence,
    kl_weight: float,
    lags: bool = False,
) -> Network:
    """All updates of an iteration, one sample and step at a time; samples that are not kept add zeros."""
    policy, weights = ToyPolicy(lags=lags), advantages().double()

    def loss_of(share: list[tuple[int, int]]) -> Callable[[Network, Network], Tensor | None]:
        def loss(network: Network, old: Network) -> Tensor | None:
            terms, distances = [], []
            for p, g in share:
                if (p, g) not in kept:
                    continue
                for step in transitions:
                    sample = sample_of(transitions, p, g, step)
                    terms.append(term(sample, network, old, weights[p, g].item()))
                    distances.append(divergence(sample, network, policy.start))
            if not terms:
                return None
            total = torch.stack(terms).sum() / (len(share) * len(transitions))
            return total + kl_weight * torch.stack(distances).mean()

        return loss

    for _ in repeat_updates(policy, [loss_of(share) for share in shares]):
        pass
    return policy.network


def assert_same_weights(one: Network, other: Network, tolerance: float) -> None:
    assert (one.first - Network().first).abs().max() > 1e-3
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def velocity_divergence(sample: Sample, network: Network, start: Network) -> Tensor:
    return ((sample.velocity(network) - sample.velocity(start).detach()) ** 2).mean()
