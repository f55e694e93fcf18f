"""The updates of GRPO's relatives and of the forward process against a loop over single samples: the same weights."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from mixgrpo.flow.rollout import Transition
from parity import reference
from parity.bench import (
    ETA,
    GROUP,
    NUM_PROMPTS,
    NUM_STEPS,
    SHIFT,
    Sample,
    advantages,
    assert_same_weights,
    by_hand,
    clipped,
    config,
    draw,
    kept_by_hand,
    on_forward_process,
    shares_by_hand,
    update,
    velocity_divergence,
)
from parity.toy import Network

UPDATES = [(1, "samples"), (2, "samples"), (3, "prompts")]
KEEPS = {
    "all": ({}, 0.0),
    "all, divergence": ({}, 0.3),
    "extremes, divergence": ({"extremes": 1}, 0.3),
    "threshold, divergence": ({"threshold": 0.45}, 0.3),
}
updates = pytest.mark.parametrize(("count", "split"), UPDATES)
keeps = pytest.mark.parametrize("keep", KEEPS)


def mean_of(sample: Sample, network: Network) -> tuple[Tensor, float]:
    keep, std = reference.flow_sde(sample.sigma, sample.sigma_next, ETA)
    v = sample.velocity(network)
    data, noise = sample.x - sample.sigma * v, sample.x + (1 - sample.sigma) * v
    return (1 - sample.sigma_next) * data + keep * noise, std


def step_weight(kind: str, step: int) -> float:
    """In proportion to the noise, or to one over the length, with mean 1 over all steps but the last."""
    steps = list(pairwise(reference.shifted_schedule(NUM_STEPS, SHIFT).tolist()))[:-1]
    values = {
        "uniform": [1.0 for _ in steps],
        "noise": [reference.flow_sde(*pair, ETA).std for pair in steps],
        "inverse_step": [1.0 / (now - after) for now, after in steps],
    }[kind]
    return values[step] * len(values) / sum(values)


def grpo_term(sample: Sample, network: Network, old: Network, advantage: float, **loss: Any) -> Tensor:
    (mean, std), (old_mean, _) = mean_of(sample, network), mean_of(sample, old)
    log_ratio = (Normal(mean, std).log_prob(sample.x_next) - Normal(old_mean, std).log_prob(sample.x_next)).mean()
    divergence = ((mean - old_mean) ** 2).mean() / (2 * std**2)
    if loss["ratio"] == "normalised":
        log_ratio = std * (log_ratio + divergence)
    if loss["trust_region"] == "clip":
        term = clipped(log_ratio, advantage, loss["clip_range"])
    else:
        ratio = log_ratio.exp()
        grows = (ratio > 1 and advantage > 0) or (ratio < 1 and advantage < 0)
        masked = grows and divergence >= loss["max_divergence"]
        term = torch.zeros((), dtype=torch.float64) if masked else -ratio * advantage
    return step_weight(loss["step_weights"], sample.step) * term


def gaussian_divergence(sample: Sample, network: Network, start: Network) -> Tensor:
    (mean, std), (start_mean, _) = mean_of(sample, network), mean_of(sample, start)
    return torch.distributions.kl_divergence(Normal(mean, std), Normal(start_mean.detach(), std)).mean()


GRPO_LOSSES: dict[str, dict[str, Any]] = {
    "weights by noise": {"step_weights": "noise", "clip_range": 1e-3},
    "guard": {"ratio": "normalised", "step_weights": "inverse_step", "clip_range": 2e-4},
    "mask": {"trust_region": "divergence", "max_divergence": 2e-6},
    "mask of normalised": {"trust_region": "divergence", "max_divergence": 2e-6, "ratio": "normalised"},
}


@pytest.mark.parametrize("kind", GRPO_LOSSES)
@updates
@keeps
@pytest.mark.parametrize("share_trunk", [True, False])
def test_updates_on_stochastic_steps(kind: str, count: int, split: str, keep: str, share_trunk: bool) -> None:
    loss = {"ratio": "plain", "step_weights": "uniform", "trust_region": "clip", **GRPO_LOSSES[kind]}
    signal, kl_weight = KEEPS[keep]
    transitions = draw(share_trunk=share_trunk).transitions
    settings = config({**loss, "updates_per_iteration": count, "update_split": split, "kl_weight": kl_weight}, **signal)
    policy, report, _ = update(settings, transitions, advantages())

    kept = kept_by_hand(advantages().tolist(), **signal)
    shares = shares_by_hand(count, split)
    network = by_hand(
        transitions, shares, kept, term=partial(grpo_term, **loss), divergence=gaussian_divergence, kl_weight=kl_weight
    )
    assert_same_weights(policy.network, network, 1e-7)
    assert report.calls.update == sum(states(transitions, [key for key in share if key in kept]) for share in shares)
    assert report.calls.update + report.calls.saved == sum(states(transitions, share) for share in shares)
    if count > 1 and keep == "all":
        assert report.metrics["clip_fraction"] > 0, "the test must reach the bound"


def states(transitions: dict[int, Transition], samples: list[tuple[int, int]]) -> int:
    """One a sample, and one a prompt where the samples of a group are still one."""
    return sum(len({p for p, _ in samples}) if t.x.shape[1] == 1 else len(samples) for t in transitions.values())


@updates
@keeps
@pytest.mark.parametrize(("lags", "beta"), [(False, 1.0), (True, 1.0), (True, 0.3)])
def test_updates_of_the_two_implicit_policies(count: int, split: str, keep: str, lags: bool, beta: float) -> None:
    def term(sample: Sample, network: Network, old: Network, advantage: float) -> Tensor:
        v, old_v = sample.velocity(network), sample.velocity(old)
        r = min(max(advantage / 1.25, -1.0), 1.0) / 2 + 0.5
        total = torch.zeros((), dtype=torch.float64)
        for share, implicit in ((r, (1 - beta) * old_v + beta * v), (1 - r, (1 + beta) * old_v - beta * v)):
            error = (sample.x - sample.sigma * implicit) - sample.x_next  # of the predicted x0
            total = total + share * (error**2).mean() / max(error.abs().mean().item(), 1e-5)
        return total

    signal, kl_weight = KEEPS[keep]
    transitions = on_forward_process()
    loss = {"type": "nft", "beta": beta, "advantage_scale": 1.25, "kl_weight": kl_weight}
    lagging = {"old_decay_rate": 0.1} if lags else {}
    settings = config(
        {**loss, **lagging, "updates_per_iteration": count, "update_split": split}, kernel="ode", spread=1.0, **signal
    )
    policy, report, _ = update(settings, transitions, advantages(), lags=lags)
    network = by_hand(
        transitions,
        shares_by_hand(count, split),
        kept_by_hand(advantages().tolist(), **signal),
        term=term,
        divergence=velocity_divergence,
        kl_weight=kl_weight,
        lags=lags,
    )
    assert_same_weights(policy.network, network, 1e-6)
    assert (report.calls.old == report.calls.update) == lags
    assert (report.metrics["old_distance"] > 1e-3) == lags


@updates
@keeps
def test_updates_of_advantage_weighted_matching(count: int, split: str, keep: str) -> None:
    def log_prob(sample: Sample, network: Network) -> Tensor:
        noise = (sample.x - (1 - sample.sigma) * sample.x_next) / sample.sigma
        return -((sample.velocity(network) - (noise - sample.x_next)) ** 2).mean()

    def term(sample: Sample, network: Network, old: Network, advantage: float) -> Tensor:
        return clipped(log_prob(sample, network) - log_prob(sample, old), advantage, 2e-3)

    signal, kl_weight = KEEPS[keep]
    transitions = on_forward_process()
    loss = {"type": "awm", "clip_range": 2e-3, "kl_weight": kl_weight}
    settings = config(
        {**loss, "updates_per_iteration": count, "update_split": split}, kernel="ode", spread=1.0, **signal
    )
    policy, report, _ = update(settings, transitions, advantages())
    network = by_hand(
        transitions,
        shares_by_hand(count, split),
        kept_by_hand(advantages().tolist(), **signal),
        term=term,
        divergence=velocity_divergence,
        kl_weight=kl_weight,
    )
    assert_same_weights(policy.network, network, 1e-6)
    if count > 1 and keep == "all":
        assert report.metrics["clip_fraction"] > 0


@pytest.mark.parametrize(
    ("loss", "forward"),
    [({"clip_range": 1e-3}, False), ({"trust_region": "divergence"}, False), ({"type": "awm"}, True)],
    ids=["clip", "mask", "awm"],
)
def test_leaving_out_samples_of_advantage_zero_changes_calls_and_not_weights(
    loss: dict[str, Any], forward: bool
) -> None:
    transitions = on_forward_process() if forward else draw(share_trunk=False).transitions
    weights = advantages() * torch.tensor([1.0, 0.0, 1.0, 0.0])
    found = []
    for threshold in (0.0, 1e-6):
        settings = config(
            {**loss, "updates_per_iteration": 3, "update_split": "prompts"},
            kernel="ode" if forward else "flow_sde",
            spread=float(forward),
            threshold=threshold,
        )
        found.append(update(settings, transitions, weights)[:2])
    (whole, all_calls), (part, fewer_calls) = found
    assert_same_weights(whole.network, part.network, 1e-12)
    assert fewer_calls.calls.update == fewer_calls.calls.saved == all_calls.calls.update / 2


def test_a_share_without_signal_takes_no_update_and_is_no_failure() -> None:
    transitions = draw().transitions
    weights = advantages()
    weights[1] = 0.0
    settings = config({"updates_per_iteration": 3, "update_split": "prompts", "kl_weight": 0.3}, threshold=0.1)
    policy, report, spy = update(settings, transitions, weights)
    assert [len(pieces) > 0 for pieces in spy.seen] == [True, False, True]
    assert report.skipped == [False] * 2
    assert report.grad_norm > 0.0
    assert report.calls.saved == 1 + 2 * GROUP
    assert policy.averaged == 2

    nothing, report, _ = update(settings, transitions, torch.zeros(NUM_PROMPTS, GROUP))
    assert report.metrics == report.steps == {}
    assert (report.calls.update, report.skipped) == (0, [])
    assert math.isnan(report.grad_norm)
    assert torch.equal(nothing.network.first, Network().first)
    assert nothing.averaged == 0
    assert not torch.equal(policy.network.first, Network().first)
