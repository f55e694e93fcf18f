"""The update half of an iteration against a loop over single samples: gradients, old log-probs, sharing."""

from functools import partial
from itertools import chain
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan, plan_trajectory
from mixgrpo.flow.rollout import Kernel, Transition, rollout
from mixgrpo.flow.steps import cps_kernel, flow_sde_kernel
from mixgrpo.models import Conditioning
from mixgrpo.rewards.scorer import ScoreTable
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.objective import make_objective
from mixgrpo.train.pieces import split_shares
from mixgrpo.train.step import Experience
from mixgrpo.train.update import Updater, UpdateReport
from parity import reference
from parity.toy import LATENT, Network, ToyPolicy

NUM_PROMPTS, GROUP, NUM_STEPS = 2, 4, 6
ETA = 0.6
KERNELS: dict[str, Kernel] = {
    "flow_sde": partial(flow_sde_kernel, eta=ETA),
    "cps": partial(cps_kernel, eta=ETA),
}
CLIP_RANGE, LEARNING_RATE, MAX_GRAD_NORM = 0.001, 0.5, 0.06


def config(**loss: Any) -> Config:
    return Config.model_validate(
        {
            "name": "toy",
            "iterations": 1,
            "prompts_per_iteration": NUM_PROMPTS,
            "model": {"path": "toy", "height": 8, "width": 8},
            "prompts": {"train": "toy", "heldout": "toy"},
            "rollout": {"num_steps": NUM_STEPS, "group_size": GROUP, "micro_batch": 8},
            "window": {"type": "frozen", "size": 3, "start": 1},
            "rewards": [{"name": "brightness"}],
            "loss": {"type": "grpo", "clip_range": CLIP_RANGE, **loss},
            "optim": {"lr": LEARNING_RATE, "max_grad_norm": MAX_GRAD_NORM},
            "eval": {"num_steps": NUM_STEPS},
        }
    )


def bias() -> Tensor:
    return torch.randn(NUM_PROMPTS, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def advantages() -> Tensor:
    """One group with a sample that could not be scored (advantage 0)."""
    return torch.tensor([[1.3, -0.4, 0.2, -1.1], [-1.2, 0.0, 1.6, -0.4]])


def experience(plan: TrajectoryPlan, kernel: str, trained: tuple[int, ...], *, share_trunk: bool) -> Experience:
    network = Network()
    trajectory = rollout(
        lambda x, sigma, rows: network(x, sigma, bias()[rows]),
        plan,
        Noise(seed=4, iteration=0, latent_shape=LATENT),
        kernel=KERNELS[kernel],
        prompts=range(NUM_PROMPTS),
        group_size=GROUP,
        share_trunk=share_trunk,
        micro_batch=3,
    )
    transitions = {step: trajectory.transitions[step] for step in trained}
    return Experience(Conditioning({"bias": bias()}), transitions, ScoreTable({}, {}, {}), trajectory.calls)


def update(experience: Experience, kernel: str, weights: Tensor, **loss: Any) -> tuple[ToyPolicy, UpdateReport]:
    policy = ToyPolicy()
    settings = config(**loss)
    optimizer = torch.optim.SGD(policy.trained.values(), lr=LEARNING_RATE)
    updater = Updater(cast("Any", policy), optimizer, settings, make_objective(settings, KERNELS[kernel]), Clock())
    report = updater.update(experience, weights, first_update=0, stop=StopRequest(), progress=lambda done, total: None)
    return policy, report


def log_density(network: Network, transition: Transition, kernel: str, prompt: int, member: int) -> tuple[Tensor, ...]:
    """Log-density and mean of one sample's step, from the coefficients of the two predictions."""
    x = transition.x.expand(NUM_PROMPTS, GROUP, *LATENT)[prompt, member].double()
    x_next = transition.x_next[prompt, member].double()
    sigma, sigma_next = transition.sigma, transition.sigma_next
    v = network(x[None], sigma, bias()[prompt][None])[0]
    keep, std = reference.COEFFICIENTS[kernel](sigma, sigma_next, ETA)
    mean = (1 - sigma_next) * (x - sigma * v) + keep * (x + (1 - sigma) * v)
    return torch.distributions.Normal(mean, std).log_prob(x_next).mean(), mean, torch.tensor(std)


def update_by_hand(
    experience: Experience,
    kernel: str,
    weights: Tensor,
    shares: list[list[tuple[int, int]]],
    *,
    kl_weight: float = 0.0,
) -> tuple[Network, list[float]]:
    """All updates of an iteration, one sample and step at a time. Returns the network and all ratios."""
    policy = ToyPolicy()
    network, start = policy.network, policy.start
    keys = [(p, g, step) for p in range(NUM_PROMPTS) for g in range(GROUP) for step in experience.transitions]
    with torch.no_grad():
        old = {key: log_density(network, experience.transitions[key[2]], kernel, *key[:2])[0] for key in keys}
    ratios = []
    for share in shares:
        terms = []
        for prompt, member in share:
            for step, transition in experience.transitions.items():
                new, mean, std = log_density(network, transition, kernel, prompt, member)
                ratio = torch.exp(new - old[prompt, member, step])
                advantage = weights[prompt, member].double()
                bounded = min(max(ratio.item(), 1 - CLIP_RANGE), 1 + CLIP_RANGE)
                free = ratio.item() * advantage <= bounded * advantage
                surrogate = ratio * advantage if free else bounded * advantage
                with torch.no_grad():
                    start_mean = log_density(start, transition, kernel, prompt, member)[1]
                divergence = ((mean - start_mean) ** 2 / (2 * std**2)).mean()
                terms.append(-surrogate + kl_weight * divergence)
                ratios.append(ratio.item())
        gradients = torch.autograd.grad(torch.stack(terms).mean(), list(network.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))  # pyright: ignore[reportArgumentType]
        scale = min(1.0, MAX_GRAD_NORM / (norm.item() + 1e-6))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.sub_(LEARNING_RATE * scale * gradient)
    return network, ratios


def assert_same_weights(one: Network, other: Network, tolerance: float) -> None:
    moved = (one.first - Network().first).abs().max()
    assert moved > 1e-3
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("updates", "split"), [(1, "samples"), (2, "samples"), (4, "samples"), (2, "prompts")])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("share_trunk", [True, False])
def test_updates_equal_those_computed_one_sample_at_a_time(
    kernel: str, updates: int, split: str, kl_weight: float, share_trunk: bool
) -> None:
    window = range(1, 4)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    seen = experience(plan, kernel, tuple(window), share_trunk=share_trunk)
    loss = {"updates_per_iteration": updates, "update_split": split, "kl_weight": kl_weight, "micro_batch": 3}
    policy, report = update(seen, kernel, advantages(), **loss)

    shares = [
        [(p, g) for p, g in share.nonzero().tolist()] for share in split_shares(advantages(), config(**loss).loss)
    ]
    assert sorted(chain.from_iterable(shares)) == [(p, g) for p in range(NUM_PROMPTS) for g in range(GROUP)]
    network, ratios = update_by_hand(seen, kernel, advantages(), shares, kl_weight=kl_weight)
    assert_same_weights(policy.network, network, 1e-7)
    assert report.metrics["ratio_mean"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-6)
    assert report.metrics["ratio_max"] == pytest.approx(max(ratios), rel=1e-6)
    if updates > 1:
        assert any(abs(ratio - 1) > CLIP_RANGE for ratio in ratios), "the test must reach the clip"


@pytest.mark.parametrize("kernel", KERNELS)
def test_sharing_the_first_step_changes_the_number_of_calls_and_not_the_weights(kernel: str) -> None:
    window = range(1, 4)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    loss = {"updates_per_iteration": 2, "kl_weight": 0.1, "micro_batch": 5}
    shared, full = (
        update(experience(plan, kernel, tuple(window), share_trunk=share), kernel, advantages(), **loss)
        for share in (True, False)
    )
    assert_same_weights(shared[0].network, full[0].network, 1e-6)
    samples = NUM_PROMPTS * GROUP
    for (policy, report), is_shared in ((shared, True), (full, False)):
        assert report.calls.update == pytest.approx(plan.update_nfe(GROUP // 2, is_shared) * samples, rel=1e-12)
        assert policy.calls["update"] == report.calls.update
    assert shared[1].calls.update < full[1].calls.update


@pytest.mark.parametrize("share_trunk", [True, False])
def test_micro_batch_of_an_update_changes_no_weights(share_trunk: bool) -> None:
    window = range(0, 3)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    seen = experience(plan, "flow_sde", tuple(window), share_trunk=share_trunk)
    networks = [
        update(seen, "flow_sde", advantages(), updates_per_iteration=2, kl_weight=0.1, micro_batch=size)[0].network
        for size in (1, 3, 100)
    ]
    assert_same_weights(networks[0], networks[1], 1e-12)
    assert_same_weights(networks[0], networks[2], 1e-12)


@pytest.mark.parametrize("share_trunk", [True, False])
def test_first_update_has_ratio_exactly_one_in_every_piece(share_trunk: bool) -> None:
    window = range(1, 4)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    seen = experience(plan, "flow_sde", tuple(window), share_trunk=share_trunk)
    weights = advantages() + 0.3
    _, report = update(seen, "flow_sde", weights, micro_batch=3)
    for metrics in (report.metrics, *report.steps.values()):
        assert metrics["ratio_mean"] == metrics["ratio_max"] == 1.0
        assert metrics["clip_fraction"] == 0.0
        assert metrics["loss"] == pytest.approx(-weights.mean().item(), rel=1e-6)
    assert sorted(report.steps) == list(window)


def test_update_trains_only_the_steps_it_was_given() -> None:
    """As DanceGRPO does: all steps are stochastic, some of them are trained."""
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(NUM_STEPS - 1))
    trained = (1, 2, 4)
    seen = experience(plan, "flow_sde", trained, share_trunk=True)
    policy, report = update(seen, "flow_sde", advantages(), micro_batch=3)
    everyone = [[(p, g) for p in range(NUM_PROMPTS) for g in range(GROUP)]]
    network, _ = update_by_hand(seen, "flow_sde", advantages(), everyone)
    assert_same_weights(policy.network, network, 1e-7)
    assert sorted(report.steps) == list(trained)
    assert report.calls.update == plan.update_nfe(GROUP, True, trained) * NUM_PROMPTS * GROUP


def test_samples_with_advantage_zero_move_nothing() -> None:
    window = range(1, 3)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    seen = experience(plan, "flow_sde", tuple(window), share_trunk=True)
    policy, _ = update(seen, "flow_sde", torch.zeros(NUM_PROMPTS, GROUP), micro_batch=8)
    for parameter, start in zip(policy.network.parameters(), Network().parameters(), strict=True):
        assert torch.equal(parameter, start)
